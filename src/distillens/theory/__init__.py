"""Theory lab: closed forms of distillation in linear and kernel models. Numpy and scipy only.

It leans on no other instrument, so that measures can be checked against it.
"""

from __future__ import annotations

from distillens.theory.denoising import ChannelModel, Cosines, draw_cosines
from distillens.theory.equal_progress import (
    EqualProgress,
    compare_at_equal_progress,
    student_time,
    witness,
)
from distillens.theory.flow import (
    LinearFlow,
    distilled_filter,
    learnt_share,
    linear_flow,
    time_to_learn,
)
from distillens.theory.ridge import (
    RidgeRounds,
    ridge_filter,
    ridge_for_tolerance,
    ridge_shortfall,
    self_distil_ridge,
)
from distillens.theory.risk import (
    Spectra,
    Stop,
    best_time,
    best_times,
    linear_model_spectra,
    spectra,
)
from distillens.theory.studies import STUDIES, run_study

__all__ = [
    "STUDIES",
    "ChannelModel",
    "Cosines",
    "EqualProgress",
    "LinearFlow",
    "RidgeRounds",
    "Spectra",
    "Stop",
    "best_time",
    "best_times",
    "compare_at_equal_progress",
    "distilled_filter",
    "draw_cosines",
    "learnt_share",
    "linear_flow",
    "linear_model_spectra",
    "ridge_filter",
    "ridge_for_tolerance",
    "ridge_shortfall",
    "run_study",
    "self_distil_ridge",
    "spectra",
    "student_time",
    "time_to_learn",
    "witness",
]
