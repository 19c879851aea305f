"""Empirical neural tangent kernels: Grams of a network's parameter gradients."""

from distillens.kernel.ntk import EmpiricalNTK, NTKGram
from distillens.kernel.oracle import oracle_gram

__all__ = ["EmpiricalNTK", "NTKGram", "oracle_gram"]
