"""Trained students as files for deployment."""
