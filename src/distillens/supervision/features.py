"""Losses on inner features, read through hooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from distillens.data.batches import Batch
from distillens.errors import SupervisionError, nearest
from distillens.sequences import run
from distillens.supervision.protocol import Stateless, Supervision

FeatureLoss = Callable[[Tensor, Tensor], Tensor]
"""From the student's and the teacher's features of a batch to a scalar."""


def attention_transfer(student_BCHW: Tensor, teacher_BCHW: Tensor) -> Tensor:
    """Squared distance of the normalised attention maps (Zagoruyko, Komodakis, ICLR 2017).

    A map is the mean over channels of the squared features, so channel counts may differ; the
    teacher's map is resized where the positions do.
    """
    student, teacher = _attention(student_BCHW), _attention(teacher_BCHW)
    if student.shape[-2:] != teacher.shape[-2:]:
        teacher = interpolate(teacher, student.shape[-2:], mode="bilinear", align_corners=False)
    return (normalize(student.flatten(1)) - normalize(teacher.flatten(1))).square().sum(1).mean()


def _attention(features_BCHW: Tensor) -> Tensor:
    if features_BCHW.ndim != 4:
        raise SupervisionError(
            "attention transfer needs features (B, channels, height, width), "
            f"got shape {tuple(features_BCHW.shape)}"
        )
    return features_BCHW.square().mean(1, keepdim=True)


class Features(Stateless):
    """A supervision plus a weighted loss between pairs of layers.

    Parameters
    ----------
    base
        What is fitted besides.
    student, teacher
        The modules whose layers are compared; the teacher is only run, in evaluation mode.
    pairs
        From names of the student's layers to names of the teacher's, as in ``named_modules``.
    weight
        Of the sum over pairs.
    loss
        Of a pair; by default attention transfer, which needs no parameters of its own.

    Notes
    -----
    Call :meth:`close` (or use it as a context manager) to take the hooks off the student.
    """

    def __init__(
        self,
        base: Supervision,
        student: nn.Module,
        teacher: nn.Module,
        pairs: Mapping[str, str],
        *,
        weight: float = 1.0,
        loss: FeatureLoss = attention_transfer,
    ) -> None:
        if not pairs:
            raise SupervisionError("features need at least one pair of layers, got none")
        self.base, self.teacher, self.weight = base, teacher.eval(), weight
        self._pairs, self._loss = dict(pairs), loss
        self._student_features: dict[str, Tensor] = {}
        self._teacher_features: dict[str, Tensor] = {}
        self._hooks = [
            _layer(student, name, "student").register_forward_hook(
                _keep(self._student_features, name)
            )
            for name in pairs
        ]
        self._hooks += [
            _layer(teacher, name, "teacher").register_forward_hook(
                _keep(self._teacher_features, name)
            )
            for name in pairs.values()
        ]

    def advance(self, batch: Batch, step: int) -> None:
        """Advance what is fitted besides."""
        self.base.advance(batch, step)

    def loss(self, logits: Tensor, batch: Batch, step: int) -> Tensor:
        """Return the base loss plus the weighted feature losses.

        Raises
        ------
        SupervisionError
            The student did not run before, so that there are no features.
        """
        with torch.no_grad():
            run(self.teacher, batch.inputs, batch.further)
        total = self.base.loss(logits, batch, step)
        for mine, theirs in self._pairs.items():
            if mine not in self._student_features:
                raise SupervisionError(f"layer {mine!r} of the student did not run before the loss")
            feature = self._student_features.pop(mine)
            total = total + self.weight * self._loss(feature, self._teacher_features[theirs])
        return total

    def state_dict(self) -> dict[str, Any]:
        """Return the state of what is fitted besides."""
        return self.base.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it up."""
        self.base.load_state_dict(state)

    def close(self) -> None:
        """Take the hooks off both modules."""
        for hook in self._hooks:
            hook.remove()

    def __enter__(self) -> Features:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _layer(module: nn.Module, name: str, whose: str) -> nn.Module:
    layers = dict(module.named_modules())
    if not name or name not in layers:
        raise SupervisionError(
            f"the {whose} has no layer {name!r}{nearest(name, set(layers) - {''})}"
        )
    return layers[name]


def _keep(store: dict[str, Tensor], name: str) -> Callable[..., None]:
    def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        store[name] = output

    return hook
