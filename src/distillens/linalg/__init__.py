"""Solving with Gram matrices in float64: by Cholesky, by certified iteration, and what errors do."""

from distillens.linalg.certified import certified_quadratic_form
from distillens.linalg.dense import (
    ASYMMETRY,
    Factor,
    SingularGramError,
    effective_rank,
    eigen_summary,
    eigenpairs,
    factorise,
    perturbed_quadratic_form,
    quadratic_form,
)
from distillens.linalg.nystrom import rp_cholesky

__all__ = [
    "ASYMMETRY",
    "Factor",
    "SingularGramError",
    "certified_quadratic_form",
    "effective_rank",
    "eigen_summary",
    "eigenpairs",
    "factorise",
    "perturbed_quadratic_form",
    "quadratic_form",
    "rp_cholesky",
]
