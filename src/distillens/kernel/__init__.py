"""Empirical neural tangent kernels: Grams of a network's parameter gradients."""

from distillens.kernel.oracle import oracle_gram

__all__ = ["oracle_gram"]
