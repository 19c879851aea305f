"""The losses of both papers. Shapes: B examples, T positions (or none), C classes.

C = 1 is the binary case with one output: labels 0 and 1, the sigmoid in place of the softmax, and for
squared errors targets coded in [−1, 1]. Sources: Harutyunyan et al., ICLR 2023, eq. 1, 2 and 13.
Without an equation number there, squared error is ½‖y − f‖² averaged over examples.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    log_softmax,
    logsigmoid,
    one_hot,
    softmax,
)

from distillens.errors import SupervisionError


def check_temperature(temperature: float) -> float:
    """Return a temperature if it is one.

    Raises
    ------
    SupervisionError
        It is not a positive finite number.
    """
    if not 0 < temperature < float("inf"):
        raise SupervisionError(f"a temperature must be positive and finite, got {temperature}")
    return temperature


def mean_over(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean of (B,) or (B, T) values over the positions that count."""
    if mask is None:
        return values.mean()
    weights = mask.to(values.dtype)
    return (values * weights).sum() / weights.sum().clamp_min(1)


def cross_entropy(logits: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """One-hot cross-entropy (eq. 1): −mean log σ(f)_y."""
    if logits.shape[-1] == 1:
        targets = labels.to(logits.dtype)
        each = binary_cross_entropy_with_logits(logits[..., 0], targets, reduction="none")
    else:
        # Positions that do not count may carry any label, also one outside the classes.
        safe = labels if mask is None else labels.masked_fill(~mask, 0)
        each = -log_softmax(logits, -1).gather(-1, safe[..., None])[..., 0]
    return mean_over(each, mask)


def distillation_cross_entropy(
    logits: Tensor, teacher_logits: Tensor, temperature: float, mask: Tensor | None = None
) -> Tensor:
    """Distillation cross-entropy (eq. 2): −τ² mean σ(g/τ)ᵀ log σ(f/τ)."""
    student, teacher = logits / temperature, teacher_logits / temperature
    if logits.shape[-1] == 1:
        sure = teacher.sigmoid()
        each = -(sure * logsigmoid(student) + (1 - sure) * logsigmoid(-student))[..., 0]
    else:
        each = -(softmax(teacher, -1) * log_softmax(student, -1)).sum(-1)
    return temperature**2 * mean_over(each, mask)


def squared_error(logits: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """Squared error to the one-hot labels: ½ mean ‖y − f‖². One output: y = ±1."""
    return smoothed_squared_error(logits, labels, 0.0, mask)


def distillation_squared_error(
    logits: Tensor, teacher_logits: Tensor, temperature: float, mask: Tensor | None = None
) -> Tensor:
    """Distillation squared error (eq. 13): (τ/2) mean ‖σ(g/τ) − f‖², f the raw outputs.

    One output: the target is 2σ(g/τ) − 1.
    """
    scaled = teacher_logits / temperature
    targets = 2 * scaled.sigmoid() - 1 if logits.shape[-1] == 1 else softmax(scaled, -1)
    return 0.5 * temperature * mean_over((targets - logits).square().sum(-1), mask)


def smoothed_cross_entropy(
    logits: Tensor, labels: Tensor, smoothing: float, mask: Tensor | None = None
) -> Tensor:
    """Cross-entropy to (1 − ε)·one-hot + ε/C (Szegedy et al. 2016, section 7)."""
    if logits.shape[-1] == 1:
        soft = (1 - smoothing) * labels.to(logits.dtype) + 0.5 * smoothing
        each = binary_cross_entropy_with_logits(logits[..., 0], soft, reduction="none")
        return mean_over(each, mask)
    uniform = mean_over(-log_softmax(logits, -1).mean(-1), mask)
    return (1 - smoothing) * cross_entropy(logits, labels, mask) + smoothing * uniform


def smoothed_squared_error(
    logits: Tensor, labels: Tensor, smoothing: float, mask: Tensor | None = None
) -> Tensor:
    """Squared error to (1 − ε)·one-hot + ε/C; one output: to (1 − ε)·(±1)."""
    if logits.shape[-1] == 1:
        targets = (1 - smoothing) * (2 * labels.to(logits.dtype)[..., None] - 1)
    else:
        safe = labels if mask is None else labels.masked_fill(~mask, 0)
        classes = logits.shape[-1]
        targets = (1 - smoothing) * one_hot(safe, classes).to(logits.dtype) + smoothing / classes
    return 0.5 * mean_over((targets - logits).square().sum(-1), mask)


LABEL_LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor | None], Tensor]] = {
    "cross-entropy": cross_entropy,
    "squared-error": squared_error,
}
TEACHER_LOSSES: dict[str, Callable[[Tensor, Tensor, float, Tensor | None], Tensor]] = {
    "cross-entropy": distillation_cross_entropy,
    "squared-error": distillation_squared_error,
}


def predicted(logits: Tensor) -> Tensor:
    """Return (…,) predicted classes. One output: class 1 where it is positive."""
    if logits.shape[-1] == 1:
        return (logits[..., 0] > 0).to(torch.int64)
    return logits.argmax(-1)
