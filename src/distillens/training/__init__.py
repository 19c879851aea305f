"""The one training loop, its recipe and its checkpoints."""

from distillens.training.loop import History, Hook, fit, make_optimizer
from distillens.training.predict import accuracy, is_right, predict
from distillens.training.processes import (
    Precision,
    accelerator_for,
    check_accelerator,
    is_sharded,
)
from distillens.training.recipe import Schedule, TrainingRecipe
from distillens.training.trackers import Steps, Tracker, log_epoch, start_trackers, tracking
from distillens.training.trajectory import EpochRecord, Store, read_history

__all__ = [
    "EpochRecord",
    "History",
    "Hook",
    "Precision",
    "Schedule",
    "Steps",
    "Store",
    "Tracker",
    "TrainingRecipe",
    "accelerator_for",
    "accuracy",
    "check_accelerator",
    "fit",
    "is_right",
    "is_sharded",
    "log_epoch",
    "make_optimizer",
    "predict",
    "read_history",
    "start_trackers",
    "tracking",
]
