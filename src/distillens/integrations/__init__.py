"""Ways to use distillens with other libraries; each is an extra."""
