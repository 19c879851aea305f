"""Modules that register kinds of supervision; each is imported when a recipe is read."""
