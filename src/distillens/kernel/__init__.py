"""Empirical neural tangent kernels: Gram matrices of a network's parameter gradients."""

from distillens.kernel.ntk import EmpiricalNTK, NTKGram
from distillens.kernel.oracle import oracle_gram
from distillens.kernel.planning.plan import Plan
from distillens.kernel.products import KernelProduct
from distillens.kernel.similarity import (
    CentredNTKAlignment,
    NTKSimilarity,
    centred_ntk_alignment,
    ntk_similarity,
)

__all__ = [
    "CentredNTKAlignment",
    "EmpiricalNTK",
    "KernelProduct",
    "NTKGram",
    "NTKSimilarity",
    "Plan",
    "centred_ntk_alignment",
    "ntk_similarity",
    "oracle_gram",
]
