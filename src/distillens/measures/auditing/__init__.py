"""The audit of any two classifiers from arrays, in one pass and without torch."""

from distillens.measures.auditing.audit import audit, audit_with_points
from distillens.measures.auditing.over_training import Watch

__all__ = ["Watch", "audit", "audit_with_points"]
