"""What a recipe will take in time, memory and disk space, and whether it can be run."""
