"""Assembly: making blocks of gradients and contracting them to a Gram."""
