"""Losses on inner features, read through hooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from distillens.data.batches import Batch
from distillens.errors import SupervisionError, nearest
from distillens.supervision.losses import full_precision
from distillens.supervision.protocol import (
    Stateless,
    Supervision,
    class_counts,
    is_across_examples,
    student_logits,
)

FeatureLoss = Callable[[Tensor, Tensor], Tensor]
"""From the student's and the teacher's features of a batch, in float32, to a scalar."""


def attention_transfer(student_BCHW: Tensor, teacher_BCHW: Tensor) -> Tensor:
    """Squared distance of the normalised attention maps (Zagoruyko, Komodakis, ICLR 2017).

    A map is the mean over channels of the squared features, so channel counts may differ; the
    teacher's map is resized where the positions do.
    """
    student_BCHW, teacher_BCHW = full_precision(student_BCHW), full_precision(teacher_BCHW)
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
    A loss of your own, or a base, that may compare the examples of a batch is refused together with
    ``accumulate`` above 1, because the features of the whole batch are never there at once. A loss
    that is a mean over examples says so by its attribute ``across_examples = False``.

    Call :meth:`close` (or use it as a context manager) to take the hooks off the student.
    """

    reads_layers = True

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
        self.across_examples = is_across_examples(base) or (
            loss is not attention_transfer and is_across_examples(loss)
        )
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
            The student did not run before, so that there are no features, or a layer gives no tensor.
        """
        with torch.no_grad():
            self.teacher(batch.inputs)
        logits = student_logits(logits, batch, self.base)
        total = self.base.loss(logits, batch, step)
        for mine, theirs in self._pairs.items():
            if mine not in self._student_features:
                raise SupervisionError(f"layer {mine!r} of the student did not run before the loss")
            feature = _tensor(self._student_features.pop(mine), mine)
            taught = _tensor(self._teacher_features[theirs], theirs)
            with torch.autocast(feature.device.type, enabled=False):
                total = total + self.weight * self._loss(feature, taught)
        return total

    def class_counts(self, batch: Batch) -> set[int]:
        """Return the numbers of classes that what is fitted besides knows."""
        return class_counts(self.base, batch)

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


def _tensor(output: Any, name: str) -> Tensor:
    """Return a layer's output in the precision of the loss; a tuple must hold one tensor."""
    parts = output if isinstance(output, tuple | list) else [output]
    found = [each for each in parts if isinstance(each, Tensor) and each.is_floating_point()]
    if len(found) != 1:
        raise SupervisionError(
            f"layer {name!r} gives a {type(output).__name__} with {len(found)} floating-point "
            "tensors; features need a layer that gives one"
        )
    return full_precision(found[0])


def _keep(store: dict[str, Tensor], name: str) -> Callable[..., None]:
    def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        store[name] = output

    return hook
