"""Supervisions, which define what a student fits: labels, teachers and mixtures."""

import lazy_loader

# The names are listed in the stub file; each loads its module when it is first used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
