"""``python -m distillens``."""

from distillens.cli.main import main

main()
