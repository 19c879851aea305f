"""The losses of both papers. Shapes: B examples, T positions (or none), C classes.

C = 1 is the binary case with one output: labels 0 and 1, the sigmoid in place of the softmax, and for
squared errors targets coded in [−1, 1]. Sources: Harutyunyan et al., ICLR 2023, eq. 1, 2 and 13.
Without an equation number there, squared error is ½‖y − f‖² averaged over examples.

Every loss is computed in float32, or in float64 for logits in float64, whatever type the logits have;
the gradient is rounded once, to the type of the logits. Logits may be given as the output of a
network that holds them (see `distillens.data.outputs.logits_of`).

A class whose logit is −inf in the student and in the teacher does not exist for that example: the
loss is the one of the logits without it. A class that the student alone masks has an infinite loss if
the target gives it mass. Positions outside the mask may hold anything, also NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, logsigmoid, softmax

from distillens.data.labels import IGNORED, class_labels, fit_mask, fit_to_logits, outside
from distillens.data.outputs import bare_logits, logits_of
from distillens.errors import SupervisionError


def check_temperature(temperature: float) -> float:
    """Check and return a temperature.

    Raises
    ------
    SupervisionError
        It is not a positive finite number.
    """
    if isinstance(temperature, Tensor) and temperature.ndim == 0:
        # Reading a value on a GPU would make the host wait; the code that fills the tensor checks it.
        return temperature
    try:
        sound = 0 < temperature < float("inf")
    except (TypeError, RuntimeError):
        sound = False
    if not sound:
        raise SupervisionError(f"a temperature must be positive and finite, got {temperature!r}")
    return temperature


def check_smoothing(smoothing: float) -> float:
    """Check and return a label smoothing.

    Raises
    ------
    SupervisionError
        It does not lie in [0, 1].
    """
    if not 0 <= smoothing <= 1:
        raise SupervisionError(f"label smoothing must lie in [0, 1], got {smoothing}")
    return smoothing


def mean_over(values: Tensor, mask: Tensor | None, valid: Tensor | None = None) -> Tensor:
    """Return the mean of (B,) or (B, T) values over the positions that count.

    Those that are not ``valid`` make it NaN.
    """
    if valid is not None:
        values = values.masked_fill(~valid, torch.nan)
    if mask is None:
        return values.mean()
    # Not a product with the mask: 0 times a NaN is a NaN.
    return values.masked_fill(~mask, 0).sum() / mask.sum().clamp_min(1)


def full_precision(values: Tensor) -> Tensor:
    """Return float32 values, or float64 values as they are."""
    return values if values.dtype == torch.float64 else values.float()


def counted_only(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Return logits with zeros at the positions that do not count; no gradient reaches those."""
    return logits if mask is None else logits.masked_fill(~mask[..., None], 0)


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    *,
    smoothing: float = 0.0,
    checked: bool = False,
) -> Tensor:
    """One-hot cross-entropy (eq. 1): −mean log σ(f)_y.

    ``smoothing`` ε replaces the label by (1 − ε)·one-hot + ε/C (Szegedy et al. 2016, section 7); classes
    whose logit is −inf are not among the C. Without a mask, labels equal to -100 do not count.
    ``checked`` states that every label is known to be a class, so that labels are not inspected.

    Raises
    ------
    DataError
        The labels are no integers or do not fit the logits, or (on a CPU) one is no class. On a GPU
        the loss of such a label is NaN, because looking it up would make the host wait.
    """
    check_smoothing(smoothing)
    logits, index, valid, mask = labelled(logits, labels, mask, checked=checked)
    classes = two_classes(logits)
    if smoothing:
        each = soft_cross_entropy(classes, _smoothed(classes, index, smoothing).log())
    else:
        right = classes.gather(-1, index[..., None])[..., 0]
        # log σ(f)_y from f_y and the other logits, which stays exact for a student sure of the label.
        hidden = torch.finfo(classes.dtype).min
        others = classes.scatter(-1, index[..., None], hidden).logsumexp(-1)
        each = -logsigmoid(right - others)
    return mean_over(each, mask, valid)


def distillation_cross_entropy(
    logits: Tensor, teacher_logits: Tensor, temperature: float, mask: Tensor | None = None
) -> Tensor:
    """Distillation cross-entropy (eq. 2): −τ² mean σ(g/τ)ᵀ log σ(f/τ)."""
    check_temperature(temperature)
    student, teacher, mask = both_logits(logits, teacher_logits, mask)
    each = soft_cross_entropy(
        two_classes(student / temperature), two_classes(teacher / temperature)
    )
    return temperature**2 * mean_over(each, mask)


def squared_error(
    logits: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    *,
    smoothing: float = 0.0,
    checked: bool = False,
) -> Tensor:
    """Squared error to the one-hot labels: ½ mean ‖y − f‖². One output: y = ±1.

    ``smoothing`` ε replaces the label by (1 − ε)·one-hot + ε/C; one output: by (1 − ε)·(±1). Labels are
    treated as in :func:`cross_entropy`.
    """
    check_smoothing(smoothing)
    logits, index, valid, mask = labelled(logits, labels, mask, checked=checked)
    if logits.shape[-1] == 1:
        targets = (1 - smoothing) * (2 * index.to(logits.dtype)[..., None] - 1)
    else:
        targets = _smoothed(logits, index, smoothing)
    return 0.5 * mean_over(_squares(logits, targets), mask, valid)


def distillation_squared_error(
    logits: Tensor, teacher_logits: Tensor, temperature: float, mask: Tensor | None = None
) -> Tensor:
    """Distillation squared error (eq. 13): (τ/2) mean ‖σ(g/τ) − f‖², f the raw outputs.

    One output: the target is 2σ(g/τ) − 1.
    """
    check_temperature(temperature)
    student, teacher, mask = both_logits(logits, teacher_logits, mask)
    scaled = teacher / temperature
    targets = 2 * scaled.sigmoid() - 1 if student.shape[-1] == 1 else softmax(scaled, -1)
    return 0.5 * temperature * mean_over(_squares(student, targets), mask)


LABEL_LOSSES: dict[str, Callable[..., Tensor]] = {
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


def both_logits(
    logits: Any, teacher_logits: Any, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return both networks' logits in the precision of the loss, zero outside the mask, and the mask.

    Raises
    ------
    SupervisionError
        Their shapes differ.
    """
    student = bare_logits(logits, "the student")
    teacher = bare_logits(teacher_logits, "the teacher")
    if student.shape != teacher.shape:
        raise SupervisionError(
            f"the teacher gives logits of shape {tuple(teacher.shape)}, the student "
            f"{tuple(student.shape)}; both must have the same classes"
        )
    student = full_precision(student)
    mask = None if mask is None else fit_mask(mask, student)
    return counted_only(student, mask), counted_only(teacher.to(student), mask), mask


def two_classes(logits: Tensor) -> Tensor:
    """Return the logits of one output as those of two classes; others as they are."""
    if logits.shape[-1] != 1:
        return logits
    # Their difference is the logit, also if that is infinite.
    zero = torch.zeros_like(logits)
    return torch.cat([torch.minimum(-logits, zero), torch.minimum(logits, zero)], -1)


def soft_cross_entropy(student: Tensor, teacher: Tensor) -> Tensor:
    """Return (…,) cross-entropies −σ(g)ᵀ log σ(f) of (…, C) logits with C of two or more.

    The gradient stays exact where student and teacher nearly agree.
    """
    return _SoftCrossEntropy.apply(student, teacher)  # type: ignore[no-any-return]


class _SoftCrossEntropy(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(student: Tensor, teacher: Tensor) -> Tensor:  # type: ignore[override]
        q = softmax(teacher, -1)
        # 0 · log 0 = 0: what the teacher rules out costs nothing.
        return -(q * log_softmax(student, -1).masked_fill(q == 0, 0)).sum(-1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:  # type: ignore[override]
        student, teacher = ctx.saved_tensors
        to_student = to_teacher = None
        if ctx.needs_input_grad[0]:
            to_student = grad[..., None] * probability_gap(student, teacher)
        if ctx.needs_input_grad[1]:
            q, bits = softmax(teacher, -1), log_softmax(student, -1)
            bits = bits.masked_fill(q == 0, 0)
            to_teacher = grad[..., None] * q * ((q * bits).sum(-1, keepdim=True) - bits)
        return to_student, to_teacher


def probability_gap(student: Tensor, teacher: Tensor) -> Tensor:
    """Return σ(f) − σ(g), whose rounding is relative to the difference and not to its two terms.

    Where log σ(f) and log σ(g) differ by less than 1, the difference of probabilities is computed from
    that of the logits, f − g. Their constants, which float32 knows to about 1e-6 only, are corrected
    such that the differences add up to zero.
    """
    p, q = softmax(student, -1), softmax(teacher, -1)
    apart = student - teacher
    highest, place = q.max(-1, keepdim=True)
    shift = apart.gather(-1, place) - (p.gather(-1, place) / highest).log()
    apart = apart - shift
    gap = torch.where(apart.abs() < 1, q * apart.expm1(), p - q)
    total = gap.sum(-1, keepdim=True)
    return (gap - total * q) / (1 + total)


def labelled(
    logits: Any, labels: Any, mask: Tensor | None, *, checked: bool = False
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Return logits, labels that can index the classes, which did so from the start, and the mask.

    Logits are in the precision of the loss; None stands for all labels. Without a mask, labels equal to
    -100 do not count. ``checked`` labels are not inspected.
    """
    labels = class_labels(labels)
    logits = full_precision(logits_of(logits, labels.shape))
    labels, mask = fit_to_logits(labels, mask, logits)
    if checked:
        return counted_only(logits, mask), labels, None, mask
    if mask is None:
        counts = labels != IGNORED
        mask = None if _all_known(counts) else counts
    logits = counted_only(logits, mask)
    # Positions that do not count may carry any label, also one outside the classes.
    index = labels if mask is None else labels.masked_fill(~mask, 0)
    valid = (index >= 0) & (index < max(logits.shape[-1], 2))
    known = _all_known(valid)
    if known:
        return logits, index, None, mask
    if known is None:
        return logits, index.masked_fill(~valid, 0), valid, mask
    raise outside(int(index[~valid][0]), logits.shape[-1])


def _all_known(flags: Tensor) -> bool | None:
    """Return whether all are true; None if the host would have to wait for a GPU, or under vmap."""
    if flags.device.type != "cpu":
        return None
    try:
        return bool(flags.all())
    except RuntimeError:
        return None


def _smoothed(logits: Tensor, index: Tensor, smoothing: float) -> Tensor:
    """Return (…, C) targets (1 − ε)·one-hot + ε/K over the K classes that are not masked."""
    there = ~torch.isneginf(logits)
    share = smoothing / there.sum(-1, keepdim=True).clamp_min(1).to(logits.dtype)
    uniform = torch.where(there, share, 0)
    right = torch.zeros_like(uniform).scatter(-1, index[..., None], 1 - smoothing)
    return uniform + right


def _squares(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return (…,) squared distances; an output of −inf whose target is 0 is a class left out."""
    gap = targets - outputs
    return gap.masked_fill(torch.isneginf(outputs) & (targets == 0), 0).square().sum(-1)
