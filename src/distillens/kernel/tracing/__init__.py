"""Tracing: preparing a network, and recording what it does with its parameters."""
