"""The audit of any two classifiers from arrays, in one pass and without torch."""

from distillens.measures.auditing.audit import audit, audit_with_points

__all__ = ["audit", "audit_with_points"]
