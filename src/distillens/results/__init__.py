"""Results as frozen dataclasses and their JSON."""
