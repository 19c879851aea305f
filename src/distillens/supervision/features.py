"""Losses on inner features, read through hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize
from torch.utils.hooks import RemovableHandle

from distillens.data.batches import Batch
from distillens.errors import SupervisionError, nearest
from distillens.forward.evaluation import bring, copied, evaluate, shares_tensors
from distillens.supervision import protocol
from distillens.supervision.losses import full_precision
from distillens.supervision.protocol import Composite, Supervision

FeatureLoss = Callable[[Tensor, Tensor], Tensor]
"""From the student's and the teacher's features of a batch, in float32, to a scalar."""


def attention_transfer(student_BCHW: Tensor, teacher_BCHW: Tensor) -> Tensor:
    """Squared distance of the normalised attention maps (Zagoruyko, Komodakis, ICLR 2017).

    A map is the mean over channels of the squared features, so channel counts may differ; the
    teacher's map is resized where the positions do. It is computed in float32 at least.
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


class Features(Composite):
    """A supervision plus a weighted loss between pairs of layers.

    Parameters
    ----------
    base
        The supervision to which the feature losses are added.
    student, teacher
        The modules whose layers are compared. The teacher is run as by `FixedTeacher`: in evaluation
        mode, without gradients, and copied first if training the student would change it.
    pairs
        From names of the student's layers to names of the teacher's, as in ``named_modules``. A layer
        must return one tensor, or a tuple, list or dict that holds one. Its feature is what it
        returned, also where a later layer modifies that tensor in place; of a layer that runs several
        times in a forward pass, it is the last output.
    weight
        Weight of the sum over pairs.
    loss
        Loss of a pair; by default attention transfer, which needs no parameters of its own.

    Notes
    -----
    A loss of your own, or a base, that may compare the examples of a batch is refused together with
    ``accumulate`` above 1, because the features of the whole batch are never available at once. A loss
    that is a mean over examples declares it by the attribute ``across_examples = False``.

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
        if not callable(loss):
            raise SupervisionError(
                f"the loss of features is a function of two tensors, got {loss!r}; leave it out for "
                "attention transfer"
            )
        self.base, self.teacher, self.weight = protocol.checked_supervision(base), teacher, weight
        self.parts = (self.base,)
        self._pairs, self._loss = dict(pairs), loss
        self.across_examples = protocol.is_across_examples(base) or (
            loss is not attention_transfer and protocol.is_across_examples(loss)
        )
        self._student_features: dict[str, Tensor] = {}
        self._teacher_features: dict[str, Tensor] = {}
        theirs = _layers(teacher, pairs.values(), "teacher")
        self._student_hooks = _watch(_layers(student, pairs, "student"), self._student_features)
        self._teacher_hooks = _watch(theirs, self._teacher_features)

    def separate_from(self, student: nn.Module) -> bool:
        """Replace the teacher by a copy if training the student would change it."""
        base = super().separate_from(student)
        if not shares_tensors(self.teacher, student):
            return base
        _remove(self._teacher_hooks)
        self.teacher = copied(self.teacher)
        layers = _layers(self.teacher, self._pairs.values(), "teacher")
        self._teacher_hooks = _watch(layers, self._teacher_features)
        return True

    def loss(self, logits: Tensor, batch: Batch, step: int) -> Tensor:
        """Return the base loss plus the weighted feature losses.

        Raises
        ------
        SupervisionError
            The student did not run before, so that there are no features, or a layer gives no tensor.
        """
        # Taken first: layers that the teacher shares with the student carry the student's hooks too.
        features = dict(self._student_features)
        bring(self.teacher, batch.inputs.device)
        evaluate(self.teacher, batch.inputs, batch.further)
        self._student_features.clear()
        logits = protocol.student_logits(logits, batch, self.base)
        total = self.base.loss(logits, batch, step)
        for mine, theirs in self._pairs.items():
            if mine not in features:
                raise SupervisionError(f"layer {mine!r} of the student did not run before the loss")
            if theirs not in self._teacher_features:
                raise SupervisionError(
                    f"layer {theirs!r} of the teacher does not run in its forward"
                )
            feature = full_precision(features[mine])
            taught = full_precision(self._teacher_features[theirs]).to(feature.device)
            taught = taught.clone() if taught.is_inference() else taught
            with torch.autocast(feature.device.type, enabled=False):
                total = total + self.weight * self._loss(feature, taught)
        self._teacher_features.clear()
        return total

    def close(self) -> None:
        """Remove the hooks from both modules."""
        _remove(self._student_hooks + self._teacher_hooks)

    def __enter__(self) -> Features:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _layers(module: nn.Module, names: Iterable[str], whose: str) -> dict[str, nn.Module]:
    layers = {name: layer for name, layer in module.named_modules() if name}
    for name in names:
        if name not in layers:
            raise SupervisionError(f"the {whose} has no layer {name!r}{nearest(name, layers)}")
    return {name: layers[name] for name in names}


def _watch(layers: Mapping[str, nn.Module], store: dict[str, Tensor]) -> list[RemovableHandle]:
    def keep(name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        # A copy: layers such as ReLU(inplace=True) write into the tensor that they are given.
        store[name] = _only_tensor(name, output).clone()

    return [layer.register_forward_hook(partial(keep, name)) for name, layer in layers.items()]


def _remove(hooks: list[RemovableHandle]) -> None:
    for hook in hooks:
        hook.remove()


def _only_tensor(name: str, output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    inner = output.values() if isinstance(output, Mapping) else output
    inner = list(inner) if isinstance(inner, Iterable) else []
    tensors = [e for e in inner if isinstance(e, Tensor) and e.is_floating_point()]
    if len(tensors) != 1:
        raise SupervisionError(
            f"layer {name!r} returns a {type(output).__name__} with {len(tensors)} floating-point "
            "tensors; features need a layer that gives one"
        )
    return tensors[0]
