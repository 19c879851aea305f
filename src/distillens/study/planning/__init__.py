"""Expected time, memory and disk space of a recipe, and checks whether it can be run."""
