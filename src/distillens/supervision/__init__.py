"""What a student is asked to fit: labels, teachers and mixtures, as values of one protocol."""

from distillens.supervision.cache import CachedTeacher, LogitCache
from distillens.supervision.losses import (
    Loss,
    cross_entropy,
    distillation_cross_entropy,
    distillation_squared_error,
    predicted,
    squared_error,
)
from distillens.supervision.protocol import Supervision, Teacher
from distillens.supervision.recipe import SupervisionRecipe, build_supervision
from distillens.supervision.teachers import (
    FixedTeacher,
    OnlineTeacher,
    RecordedTeacher,
    TeacherCheckpoint,
)
from distillens.supervision.values import Distillation, Mixed, OneHot

__all__ = [
    "CachedTeacher",
    "Distillation",
    "FixedTeacher",
    "LogitCache",
    "Loss",
    "Mixed",
    "OneHot",
    "OnlineTeacher",
    "RecordedTeacher",
    "Supervision",
    "SupervisionRecipe",
    "Teacher",
    "TeacherCheckpoint",
    "build_supervision",
    "cross_entropy",
    "distillation_cross_entropy",
    "distillation_squared_error",
    "predicted",
    "squared_error",
]
