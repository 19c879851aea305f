"""Named losses that users compare with: decoupled distillation and DIST.

Both take logits (B, C) with C ≥ 2, of all examples of a batch, and labels (B,).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax, one_hot, softmax

from distillens.errors import SupervisionError


def decoupled(
    logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float,
    *,
    target_weight: float = 1.0,
    other_weight: float = 8.0,
) -> Tensor:
    """Decoupled knowledge distillation (Zhao et al., CVPR 2022, eq. 7), times τ².

    ``target_weight`` (the paper's α) weighs the divergence between the binary distributions label
    against the rest; ``other_weight`` (β) that between the distributions over the other classes.
    """
    _two_classes("dkd", logits)
    true = one_hot(labels, logits.shape[-1]).bool()
    student, teacher = logits / temperature, teacher_logits / temperature
    log_student, log_teacher = log_softmax(student, -1), log_softmax(teacher, -1)
    target = kl_div(
        _binary(log_student, true), _binary(log_teacher, true), log_target=True, reduction="none"
    )
    # Without the label's logit what remains is the softmax over the other classes.
    hidden = torch.finfo(logits.dtype).min
    other_student = log_softmax(student.masked_fill(true, hidden), -1)
    other_teacher = log_softmax(teacher.masked_fill(true, hidden), -1)
    gap = (other_teacher - other_student).masked_fill(true, 0.0)
    other = (other_teacher.exp() * gap).sum(-1)
    return temperature**2 * (target_weight * target.sum(-1) + other_weight * other).mean()


def _binary(log_probabilities: Tensor, true: Tensor) -> Tensor:
    """Return (B, 2) logarithms of the label's probability and of all others' together."""
    label = log_probabilities[true]
    rest = log_probabilities.masked_fill(true, -torch.inf).logsumexp(-1)
    return torch.stack([label, rest], -1)


def dist(
    logits: Tensor,
    teacher_logits: Tensor,
    temperature: float,
    *,
    inter_weight: float = 1.0,
    intra_weight: float = 1.0,
) -> Tensor:
    """DIST (Huang et al., NeurIPS 2022, eq. 8 to 10), times τ².

    One minus Pearson's correlation of teacher and student probabilities: over the classes of each
    example (inter) and over the examples of each class (intra).
    """
    _two_classes("dist", logits)
    student = softmax(logits / temperature, -1)
    teacher = softmax(teacher_logits / temperature, -1)
    inter = 1 - _pearson(student, teacher).mean()
    intra = 1 - _pearson(student.T, teacher.T).mean()
    return temperature**2 * (inter_weight * inter + intra_weight * intra)


def _pearson(one: Tensor, other: Tensor) -> Tensor:
    one = one - one.mean(-1, keepdim=True)
    other = other - other.mean(-1, keepdim=True)
    return torch.cosine_similarity(one, other, dim=-1, eps=1e-8)


def _two_classes(name: str, logits: Tensor) -> None:
    if logits.ndim != 2 or logits.shape[-1] < 2:
        raise SupervisionError(
            f"{name} is defined for logits (B, C) with at least two classes, "
            f"got shape {tuple(logits.shape)}"
        )
