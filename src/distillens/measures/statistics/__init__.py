"""Intervals, the bootstrap and regression slopes."""
