"""Named losses that users compare with: decoupled distillation and DIST.

Both take logits (B, C) with C ≥ 2, of all examples of a batch. Precision, classes whose logit is −inf
and examples outside the mask are treated as in `distillens.supervision.losses`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from distillens.errors import SupervisionError
from distillens.supervision import losses


def decoupled(
    logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float,
    *,
    target_weight: float = 1.0,
    other_weight: float = 8.0,
    mask: Tensor | None = None,
) -> Tensor:
    """Decoupled knowledge distillation (Zhao et al., CVPR 2022, eq. 7), times τ².

    ``target_weight`` (the paper's α) weighs the divergence between the binary distributions label
    against the rest; ``other_weight`` (β) that between the distributions over the other classes.
    Without a mask, labels equal to -100 do not count.
    """
    losses.check_temperature(temperature)
    logits, index, valid, mask = losses.labelled(logits, labels, mask)
    student, teacher, mask = losses.both_logits(logits, teacher_logits, mask)
    _two_classes("dkd", student)
    student, teacher = student / temperature, teacher / temperature
    target = _divergence(_against_rest(student, index), _against_rest(teacher, index))
    # Without the label's logit what remains is the softmax over the other classes.
    other = _divergence(*(_without(each, index) for each in (student, teacher)))
    total = target_weight * target + other_weight * other
    return temperature**2 * losses.mean_over(total, mask, valid)


def dist(
    logits: Tensor,
    teacher_logits: Tensor,
    temperature: float,
    *,
    inter_weight: float = 1.0,
    intra_weight: float = 1.0,
    mask: Tensor | None = None,
) -> Tensor:
    """DIST (Huang et al., NeurIPS 2022, eq. 8 to 10), times τ².

    One minus Pearson's correlation of teacher and student probabilities: over the classes of each
    example (inter) and over the examples of each class (intra). The loss compares the examples of a
    batch, so it is not the mean of the losses of its parts.
    """
    losses.check_temperature(temperature)
    student, teacher, mask = losses.both_logits(logits, teacher_logits, mask)
    _two_classes("dist", student)
    there = ~(torch.isneginf(student) & torch.isneginf(teacher))
    if mask is not None:
        there = there & mask[:, None]
    student, teacher = student / temperature, teacher / temperature
    p, q = log_softmax(student, -1), log_softmax(teacher, -1)
    with torch.no_grad():
        gap = losses.probability_gap(student, teacher)
    zero = p.new_zeros(1)
    inter = losses.mean_over(_decorrelation(*_scaled(p, q, gap, zero, zero), there), mask)
    scaled = _scaled(p, q, gap, *_scales(p, q, there))
    intra = losses.mean_over(_decorrelation(scaled[0].T, scaled[1].T, there.T), there.any(0))
    return temperature**2 * (inter_weight * inter + intra_weight * intra)


@torch.no_grad()
def _scales(log_p: Tensor, log_q: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """Return (C,) logarithms by which the classes of student and teacher are divided.

    A correlation over examples does not depend on the class's scale, which may be far below 1. Where
    the networks' scales are alike they get one scale, so that their difference keeps its meaning.
    """
    mine, theirs = (
        each.masked_fill(~there, -torch.inf).amax(0).nan_to_num(neginf=0.0)
        for each in (log_p, log_q)
    )
    alike = (mine - theirs).abs() < 1
    both = torch.maximum(mine, theirs)
    return torch.where(alike, both, mine), torch.where(alike, both, theirs)


TINY = -80.0
"""Logarithm of the scale below which differences of probabilities leave the range of float32."""


def _scaled(
    log_p: Tensor, log_q: Tensor, gap: Tensor, mine: Tensor, theirs: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the teacher's scaled probabilities, and the student's less the teacher's."""
    p, q = (log_p - mine).exp(), (log_q - theirs).exp()
    accurate = (mine == theirs) & (mine > TINY)
    value = torch.where(accurate, gap * (-mine.clamp_min(TINY)).exp(), (p - q).detach())
    # The value is the accurate one, the gradient that of the student's probabilities.
    return q, value + (p - p.detach())


def _decorrelation(other: Tensor, gap: Tensor, there: Tensor) -> Tensor:
    """Return (N,) values 1 − r, r Pearson's correlation of the rows of other + gap and other.

    Only finite entries count. It is computed as half the squared distance of the normalised
    rows, from their gap: 1 − r itself would be lost in rounding where r is near 1. A correlation with
    a constant is undefined and taken as 0.
    """
    count = there.sum(-1, keepdim=True).clamp_min(1).to(other.dtype)
    noise = [_noise(values, there) * count.sqrt() for values in (other + gap, other)]
    gap, other = _centred(gap, there, count), _centred(other, there, count)
    one = other + gap
    sizes = [values.square().sum(-1, keepdim=True) for values in (one, other)]
    defined = (sizes[0] > noise[0] ** 2) & (sizes[1] > noise[1] ** 2)
    mine, theirs = (torch.where(defined, size, 1).sqrt() for size in sizes)
    shrink = (gap * (one + other)).sum(-1, keepdim=True) / (mine * theirs * (mine + theirs))
    distance = (gap / mine - other * shrink).square().sum(-1)
    return torch.where(defined[:, 0], 0.5 * distance, 1)


def _noise(values: Tensor, there: Tensor) -> Tensor:
    """Return (N, 1) bounds below which differences within a row are rounding."""
    largest = values.detach().masked_fill(~there, 0).amax(-1, keepdim=True)
    return 8 * torch.finfo(values.dtype).eps * largest


def _centred(values: Tensor, there: Tensor, count: Tensor) -> Tensor:
    mean = values.masked_fill(~there, 0).sum(-1, keepdim=True) / count
    return (values - mean).masked_fill(~there, 0)


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Return (…,) Kullback-Leibler divergences of the student's softmax from the teacher's."""
    return losses.soft_cross_entropy(student, teacher) - losses.soft_cross_entropy(teacher, teacher)


def _against_rest(logits: Tensor, index: Tensor) -> Tensor:
    """Return (B, 2) logits of the label and of all other classes together."""
    right = logits.gather(-1, index[..., None])
    return torch.cat([right, _without(logits, index).logsumexp(-1, keepdim=True)], -1)


def _without(logits: Tensor, index: Tensor) -> Tensor:
    # Not −inf, so that a row in which no other class is left has a softmax.
    return logits.scatter(-1, index[..., None], torch.finfo(logits.dtype).min)


def _two_classes(name: str, logits: Tensor) -> None:
    if logits.ndim != 2 or logits.shape[-1] < 2:
        raise SupervisionError(
            f"{name} is defined for logits (B, C) with at least two classes, "
            f"got shape {tuple(logits.shape)}"
        )
