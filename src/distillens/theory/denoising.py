"""Thm. 4.3, exploratory: is the distillation gradient closer to the truth than the alternatives?

Source: Nagarajan et al., first arXiv version of 2301.12923, Thm. 4.3 (not in later abstracts).
Shapes: N examples, K classes (channels), D inputs per channel, S samples, M = 2N terms of sums.

A K-channel linear model f(x) = (w₁·x₁, …, w_K·x_K) under softmax cross-entropy. An example of class y
has x_y ~ N(0, I/D) given x_y·μ_y = t, a similar class z ≠ y (uniform) x_z ~ N(0, I/D) given
x_z·μ_z = t/2, and zeros elsewhere. The student's weights are αμ_k; the teacher's have norm r and cosine
1 − ε to μ_k. Compared are, by their cosine with μ_k: the descent direction of node k with one-hot
targets, that with the teacher's probabilities, averaged over N examples, and the teacher's weights.

**Exact sampling in few dimensions.** The coefficients (q − p) of an average Σ cᵢxᵢ depend on x only by
its parts along μ_k and along the teacher's error. The remaining D − 2 parts of the sum are, given the
coefficients, independent Gaussians of variance Σcᵢ²/D, so their squared length is a χ² variable. The
two gradients are sampled together, from the same examples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distillens.errors import TheoryError
from distillens.theory.checks import non_negative, positive

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ChannelModel:
    """The setting of the theorem."""

    classes: int = 10
    dimension: int = 1000
    """D."""
    signal: float = 4.0
    """t (the paper's τ; it is no temperature)."""
    examples: int = 200
    """N, over which gradients are averaged."""
    student_norm: float = 0.1
    """α."""
    teacher_norm: float = 1.0
    """r."""
    teacher_error: float = 0.3
    """ε."""

    def __post_init__(self) -> None:
        for name, least in {"classes": 2, "dimension": 4, "examples": 1}.items():
            value = getattr(self, name)
            if value != int(value) or value < least:
                raise TheoryError(f"{name} is {value}; give a whole number >= {least}")
        positive(self.signal, "signal")
        positive(self.teacher_norm, "teacher_norm")
        non_negative(self.student_norm, "student_norm")
        if not 0 <= self.teacher_error < 1:
            raise TheoryError(f"teacher_error is {self.teacher_error}; give a number in [0, 1)")


@dataclass(frozen=True, eq=False)
class Cosines:
    """Cosines with μ_k for each sample and node, (S, K); NaN where no example reached the node."""

    one_hot_SK: Array
    distilled_SK: Array
    teacher: float

    def margin(self) -> Array:
        """Return distilled − max(one-hot, teacher), (S, K): above 0 the inequality held."""
        return self.distilled_SK - np.maximum(self.one_hot_SK, self.teacher)


def draw_cosines(model: ChannelModel, samples: int, rng: np.random.Generator) -> Cosines:
    """Draw samples of N examples and return the cosines of every node.

    Parameters
    ----------
    model
        The setting.
    samples
        S ≥ 1.
    rng
        The source of randomness.

    Raises
    ------
    TheoryError
        There is no sample to draw.
    """
    if samples < 1:
        raise TheoryError(f"{samples} samples; give at least 1")
    pairs = [_one_sample(model, rng) for _ in range(samples)]
    one_hot, distilled = (np.stack(part) for part in zip(*pairs, strict=True))
    return Cosines(one_hot, distilled, 1 - model.teacher_error)


def _one_sample(model: ChannelModel, rng: np.random.Generator) -> tuple[Array, Array]:
    count, classes = model.examples, model.classes
    label_N = rng.integers(classes, size=count)
    other_N = (label_N + rng.integers(1, classes, size=count)) % classes
    # Parts along the teacher's error, for the channels of y and of z.
    error_N2 = rng.normal(size=(count, 2)) / np.sqrt(model.dimension)
    along_N2 = np.broadcast_to([model.signal, model.signal / 2], (count, 2))
    cosine = 1 - model.teacher_error
    sine = np.sqrt(1 - cosine**2)
    student_N2 = _probabilities(model.student_norm * along_N2, classes)
    teacher_N2 = _probabilities(model.teacher_norm * (cosine * along_N2 + sine * error_N2), classes)
    node_M = np.stack([label_N, other_N], axis=1).ravel()
    hard_M = (np.array([1.0, 0.0]) - student_N2).ravel()
    soft_M = (teacher_N2 - student_N2).ravel()

    def by_node(values_M: Array) -> Array:
        return np.bincount(node_M, values_M, minlength=classes).astype(np.float64, copy=False)

    lengths = _rest_lengths(
        by_node(hard_M**2), by_node(hard_M * soft_M), by_node(soft_M**2), model.dimension, rng
    )
    cosines = []
    for part_M, rest_K in zip((hard_M, soft_M), lengths, strict=True):
        along_K = by_node(part_M * along_N2.ravel())
        size_K = np.sqrt(along_K**2 + by_node(part_M * error_N2.ravel()) ** 2 + rest_K)
        cosines.append(np.divide(along_K, size_K, out=np.full(classes, np.nan), where=size_K > 0))
    return cosines[0], cosines[1]


def _rest_lengths(
    hard_K: Array, mixed_K: Array, soft_K: Array, dimension: int, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Draw the squared lengths of Σcᵢxᵢ and Σc′ᵢxᵢ in the other D − 2 dimensions, from the same xᵢ.

    Given Σc², Σcc′ and Σc′², the second sum is its regression on the first plus an independent Gaussian,
    of which one part lies along the first.
    """
    squared = rng.chisquare(dimension - 2, size=len(hard_K))
    part, orthogonal = rng.normal(size=len(hard_K)), rng.chisquare(dimension - 3, size=len(hard_K))
    share = np.divide(mixed_K, np.sqrt(hard_K), out=np.zeros_like(hard_K), where=hard_K > 0)
    # Rounding may leave a variance just below zero, as where N = 1 and both sums are parallel.
    own = np.sqrt(np.maximum(soft_K - share**2, 0))
    first = hard_K * squared
    second = (share * np.sqrt(squared) + own * part) ** 2 + own**2 * orthogonal
    return first / dimension, second / dimension


def _probabilities(logits_N2: Array, classes: int) -> Array:
    """Return the softmax of the channels y and z among K, the others having logit 0."""
    shift = np.maximum(logits_N2.max(axis=1, keepdims=True), 0)
    powers = np.exp(logits_N2 - shift)
    return powers / (powers.sum(axis=1, keepdims=True) + (classes - 2) * np.exp(-shift))
