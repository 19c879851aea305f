"""What a student is asked to fit: labels, teachers and mixtures, as values of one protocol."""

from distillens.supervision.averaged import AveragedTeacher
from distillens.supervision.build import Setting, Teachers, build_supervision, check_losses
from distillens.supervision.cache import CachedTeacher, LogitCache
from distillens.supervision.compared import decoupled, dist
from distillens.supervision.cotrained import CotrainedTeacher
from distillens.supervision.features import Features, attention_transfer
from distillens.supervision.losses import (
    Loss,
    cross_entropy,
    distillation_cross_entropy,
    distillation_squared_error,
    predicted,
    squared_error,
)
from distillens.supervision.pace import TemperatureSchedule, pace_of
from distillens.supervision.protocol import Supervision, Teacher
from distillens.supervision.recipe import SupervisionRecipe, parts_of
from distillens.supervision.teachers import (
    FixedTeacher,
    OnlineTeacher,
    RecordedTeacher,
    TeacherCheckpoint,
)
from distillens.supervision.values import Distillation, Mixed, OneHot, Switched

__all__ = [
    "AveragedTeacher",
    "CachedTeacher",
    "CotrainedTeacher",
    "Distillation",
    "Features",
    "FixedTeacher",
    "LogitCache",
    "Loss",
    "Mixed",
    "OneHot",
    "OnlineTeacher",
    "RecordedTeacher",
    "Setting",
    "Supervision",
    "SupervisionRecipe",
    "Switched",
    "Teacher",
    "TeacherCheckpoint",
    "Teachers",
    "TemperatureSchedule",
    "attention_transfer",
    "build_supervision",
    "check_losses",
    "cross_entropy",
    "decoupled",
    "dist",
    "distillation_cross_entropy",
    "distillation_squared_error",
    "pace_of",
    "parts_of",
    "predicted",
    "squared_error",
]
