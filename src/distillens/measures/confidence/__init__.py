"""The audit of a student against its teacher: confidence, fidelity, calibration and departures."""

from distillens.measures.confidence.audit import audit, audit_with_points
from distillens.measures.confidence.outputs import SUM_TOLERANCE
from distillens.measures.confidence.over_training import CheckpointMeter

__all__ = ["SUM_TOLERANCE", "CheckpointMeter", "audit", "audit_with_points"]
