"""distillens: distil small neural networks from large ones, and see why a student turned out so.

Names load when they are first used, so that ``import distillens`` stays light.
"""

import lazy_loader

__version__ = "0.1.0"

# The names are listed in the stub file; each loads its module when it is first used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
