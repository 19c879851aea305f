"""Sources of examples: each module registers those that it holds."""
