"""The networks that distillens builds by name."""
