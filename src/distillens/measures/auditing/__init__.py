"""The audit of any two classifiers from arrays, in one pass and without torch."""

from distillens.measures.auditing.audit import audit, audit_with_points
from distillens.measures.auditing.outputs import SUM_TOLERANCE
from distillens.measures.auditing.over_training import Watch

__all__ = ["SUM_TOLERANCE", "Watch", "audit", "audit_with_points"]
