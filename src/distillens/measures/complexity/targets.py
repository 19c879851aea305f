"""Targets as the kernel sees them: labels, teachers, random labels and predictions in one coding.

"binary": one output, targets in [−1, 1], shape (N,). "centred": one output a class, the mean over
classes subtracted, shape (N, C).

Source: Harutyunyan et al., ICLR 2023, arXiv 2301.12245, Prop. 5 (binary teachers); the centring of
softmax targets is ours. Shapes: N examples, C classes.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import scipy.special
from numpy.typing import ArrayLike, NDArray

from distillens.errors import MeasureError
from distillens.files.array_likes import as_array

Array = NDArray[np.float64]
Coding = Literal["binary", "centred"]

CODING_WORDS: dict[Coding, str] = {
    "binary": "one output in [−1, 1]",
    "centred": "centred over classes",
}


def coding_of(outputs: int) -> Coding:
    """Return the coding for a network with a number of outputs."""
    return "binary" if outputs == 1 else "centred"


def softmax(logits_NC: ArrayLike, temperature: float = 1.0) -> Array:
    """Return σ(z/τ) over the last axis, in float64."""
    scaled = np.asarray(as_array(logits_NC), dtype=np.float64) / _check_temperature(temperature)
    return scipy.special.softmax(scaled, axis=-1)


def label_targets(labels_N: ArrayLike, classes: int, coding: Coding = "centred") -> Array:
    """Code labels in 0 … C−1: one-hot minus 1/C, (N, C); or ±1, (N,), for one output.

    Raises
    ------
    MeasureError
        A label is no integer or out of range, or binary coding is asked for with C ≠ 2.
    """
    labels = check_labels(labels_N, classes)
    if coding == "binary":
        _check_two(classes)
        return 2 * labels.astype(np.float64) - 1
    targets_NC = np.full((len(labels), classes), -1.0 / classes)
    targets_NC[np.arange(len(labels)), labels] += 1.0
    return targets_NC


def teacher_targets(
    logits_NC: ArrayLike, temperature: float = 1.0, coding: Coding | None = None
) -> Array:
    """Code a teacher's outputs at temperature τ.

    Parameters
    ----------
    logits_NC
        (N, C), or (N, 1) for one output whose σ is the probability of class 1.
    temperature
        τ > 0.
    coding
        By default the coding of the teacher's own outputs; give the student's if it differs, as for a
        one-output student with a two-class teacher.

    Returns
    -------
    ndarray
        softmax(g/τ) − 1/C, (N, C); or 2σ(g/τ) − 1, (N,).

    Raises
    ------
    MeasureError
        The logits are not 2-D or not finite, τ ≤ 0, or binary coding is asked for with C > 2.
    """
    logits = _check_outputs(logits_NC)
    temperature = _check_temperature(temperature)
    outputs = logits.shape[1]
    if (coding or coding_of(outputs)) == "binary":
        if outputs > 1:
            _check_two(outputs)
        margin = logits[:, -1] - (logits[:, 0] if outputs == 2 else 0.0)
        # 2σ(z) − 1 = tanh(z/2), without the cancellation near z = 0.
        return np.tanh(0.5 * margin / temperature)
    if outputs == 1:
        probability = scipy.special.expit(logits[:, 0] / temperature)
        return np.stack([0.5 - probability, probability - 0.5], axis=1)
    return softmax(logits, temperature) - 1.0 / outputs


def random_label_targets(
    examples: int, classes: int, rng: np.random.Generator, coding: Coding = "centred"
) -> Array:
    """Draw labels uniformly over the classes and code them as `label_targets` does."""
    return label_targets(rng.integers(classes, size=examples), classes, coding)


def prediction_targets(outputs_NC: ArrayLike) -> Array:
    """Project a student's raw outputs f onto the space of the targets, for eq. 49.

    (N, 1) becomes (N,); from (N, C) the mean over classes is subtracted, so that Y − f is centred.

    Raises
    ------
    MeasureError
        The outputs are not 2-D or not finite.
    """
    outputs = _check_outputs(outputs_NC)
    if outputs.shape[1] == 1:
        return outputs[:, 0]
    return outputs - outputs.mean(axis=1, keepdims=True)


def check_labels(labels_N: ArrayLike, classes: int) -> NDArray[np.integer]:
    """Return labels as an integer array, or raise MeasureError if one is not in 0 … C−1."""
    labels = as_array(labels_N)
    if classes < 2:
        raise MeasureError(
            f"{classes} classes; labels need at least 2 (one output means 2 classes)"
        )
    # Truth values are classes where there are two; with more classes they are probably a mask.
    if labels.ndim != 1 or labels.dtype.kind not in ("iub" if classes == 2 else "iu"):
        raise MeasureError(
            f"labels have shape {labels.shape} and type {labels.dtype}; give integers, shape (N,)"
        )
    labels = labels.astype(np.int64, copy=False)
    if labels.size and (labels.min() < 0 or labels.max() >= classes):
        raise MeasureError(
            f"labels go from {labels.min()} to {labels.max()}; "
            f"with {classes} classes they must lie in 0 to {classes - 1}"
        )
    return labels


def _check_outputs(outputs_NC: ArrayLike) -> Array:
    outputs = np.asarray(as_array(outputs_NC), dtype=np.float64)
    if outputs.ndim != 2 or outputs.shape[1] == 0:
        raise MeasureError(
            f"outputs have shape {outputs.shape}; give (N, C), or (N, 1) for a single output"
        )
    if not np.isfinite(outputs).all():
        raise MeasureError(f"outputs of shape {outputs.shape} hold NaN or infinity")
    return outputs


def _check_temperature(temperature: float) -> float:
    if not (np.isfinite(temperature) and temperature > 0):
        raise MeasureError(f"the temperature is {temperature}; give a finite number > 0")
    return float(temperature)


def _check_two(classes: int) -> None:
    if classes != 2:
        raise MeasureError(f"binary coding needs 2 classes, there are {classes}; use 'centred'")
