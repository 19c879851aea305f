"""Measures of distillation: functions from arrays to results, without torch."""

from distillens.errors import missing_name
from distillens.measures.complexity.bounds import (
    DEFAULT_MARGINS,
    KernelFit,
    binary_bound,
    distillation_bound,
    kernel_fit,
    margin_loss,
    multiclass_bound,
)
from distillens.measures.complexity.complexity import (
    ComplexityMeter,
    diagonal_reference,
    factorise_gram,
    gradient_residual,
    random_target_level,
    supervision_complexity,
)
from distillens.measures.complexity.gram import (
    Alignment,
    EnergyCurve,
    GramSpectrum,
    centred_alignment,
    decompose_gram,
    kernel_target_alignment,
)
from distillens.measures.complexity.targets import (
    CODING_WORDS,
    coding_of,
    label_targets,
    prediction_targets,
    random_label_targets,
    softmax,
    teacher_targets,
)
from distillens.measures.confidence import audit
from distillens.measures.confidence.log_odds import phi_from_logits
from distillens.measures.statistics.intervals import (
    accuracy_estimate,
    mean_over_seeds,
    paired_gain,
    paired_interval,
    wilson_interval,
)

__all__ = [
    "CODING_WORDS",
    "DEFAULT_MARGINS",
    "Alignment",
    "ComplexityMeter",
    "EnergyCurve",
    "GramSpectrum",
    "KernelFit",
    "accuracy_estimate",
    "audit",
    "binary_bound",
    "centred_alignment",
    "coding_of",
    "decompose_gram",
    "diagonal_reference",
    "distillation_bound",
    "factorise_gram",
    "gradient_residual",
    "kernel_fit",
    "kernel_target_alignment",
    "label_targets",
    "margin_loss",
    "mean_over_seeds",
    "multiclass_bound",
    "paired_gain",
    "paired_interval",
    "phi_from_logits",
    "prediction_targets",
    "random_label_targets",
    "random_target_level",
    "softmax",
    "supervision_complexity",
    "teacher_targets",
    "wilson_interval",
]


def __getattr__(name: str) -> object:
    raise missing_name(__name__, name)
