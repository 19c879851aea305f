"""Supervision complexity of targets on a Gram, with references and bounds."""
