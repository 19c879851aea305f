"""Data sources: each returns the named splits that it holds."""
