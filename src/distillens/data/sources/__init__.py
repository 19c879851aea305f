"""Sources of examples: one module per source, which registers it."""
