"""What distillation did, in numbers: arrays in, results out, without torch."""

from distillens.measures.complexity import (
    ComplexityMeter,
    factorise_gram,
    gradient_residual,
    supervision_complexity,
)
from distillens.measures.confidence import (
    Points,
    phi_from_logits,
    phi_from_probabilities,
)
from distillens.measures.deviation import deviation
from distillens.measures.intervals import (
    accuracy_estimate,
    mean_over_seeds,
    paired_gain,
    wilson_interval,
)
from distillens.measures.targets import (
    CODING_WORDS,
    coding_of,
    label_targets,
    prediction_targets,
    random_label_targets,
    softmax,
    teacher_targets,
)

__all__ = [
    "CODING_WORDS",
    "ComplexityMeter",
    "Points",
    "accuracy_estimate",
    "coding_of",
    "deviation",
    "factorise_gram",
    "gradient_residual",
    "label_targets",
    "mean_over_seeds",
    "paired_gain",
    "phi_from_logits",
    "phi_from_probabilities",
    "prediction_targets",
    "random_label_targets",
    "softmax",
    "supervision_complexity",
    "teacher_targets",
    "wilson_interval",
]
