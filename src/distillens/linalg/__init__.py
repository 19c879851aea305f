"""Solving with Gram matrices in float64: by Cholesky, by certified iteration, and what errors do."""

from distillens.linalg.certified import (
    CertifiedValues,
    UndeterminedError,
    certified_quadratic_form,
)
from distillens.linalg.dense import (
    ASYMMETRY,
    EigenSummary,
    Factor,
    SingularGramError,
    effective_rank,
    eigen_summary,
    eigenpairs,
    factorise,
    quadratic_form,
)
from distillens.linalg.nystrom import LowRankKernel, low_rank_kernel, rp_cholesky
from distillens.linalg.perturbation import PerturbedValues, perturbed_quadratic_form
from distillens.linalg.singular import RidgedValues, quadratic_form_with_ridge

__all__ = [
    "ASYMMETRY",
    "CertifiedValues",
    "EigenSummary",
    "Factor",
    "LowRankKernel",
    "PerturbedValues",
    "RidgedValues",
    "SingularGramError",
    "UndeterminedError",
    "certified_quadratic_form",
    "effective_rank",
    "eigen_summary",
    "eigenpairs",
    "factorise",
    "low_rank_kernel",
    "perturbed_quadratic_form",
    "quadratic_form",
    "quadratic_form_with_ridge",
    "rp_cholesky",
]
