"""``python -m distillens``."""

from distillens.cli import main

main()
