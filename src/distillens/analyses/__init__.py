"""Measurements of finished runs, and of models and arrays of a user."""
