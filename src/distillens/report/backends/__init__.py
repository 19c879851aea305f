"""HTML and matplotlib."""
