"""The kinds of supervision that distillens has: one module each, which registers its recipe."""
