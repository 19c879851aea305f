"""Atomic writes, arrays and tables in files, YAML, and paths and code that users name."""
