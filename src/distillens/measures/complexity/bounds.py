"""Kernel fits, and bounds on their risk by their complexity: the paper's theorems in numbers.

Source: Harutyunyan et al., ICLR 2023, arXiv 2301.12245, Thm. 3, Thm. 4, Prop. 5; the interpolant f* has
‖f*‖² = YᵀK⁻¹Y. That the ridge solution's norm is no larger is a line of algebra, below.
Shapes: N examples, C classes, J margins.

Each bound is a margin loss, a complexity term and a confidence term. They speak of the kernel fit f*,
not of a network, and hold for examples that are independent of each other and of the kernel: a
tangent kernel at weights that were trained on the same examples is not, so measure on others.

**The margin.** A theorem speaks of one γ, fixed beforehand. Here each of the J margins of a grid gets
δ/J, so that all J bounds hold at once with probability 1 − δ and the lowest may be taken. The
confidence term is therefore 3√(ln(2·M₀·J/δ)/(2N)) with the M₀ of each γ. The grid must not be
chosen by looking at the examples.

**M₀.** It counts the norms 1 … M₀ that a union bound covers. A larger norm makes the bound vacuous by
itself where the diagonal of K is constant; where Tr K is below N·κ the printed sum can be below 1
for a norm above M₀, which the union bound does not prove. Such margins are passed over, and where
none is left the result is marked as not covered. The union bound asks of κ only that it was
fixed beforehand: a smaller κ covers larger norms, at the price of a larger M₀ in the logarithm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distillens.errors import KernelError, MeasureError
from distillens.measures.complexity.complexity import (
    ComplexityMeter,
    block_columns,
    fit_targets,
    operator_trace,
)
from distillens.measures.complexity.targets import check_labels
from distillens.results.complexity import RiskBound

Array = NDArray[np.float64]

# Quarter octaves from 0.015 to 15.7. The factor puts one just below 1, the margin of an interpolant
# of labels, since Thm. 4 counts margins equal to γ as errors.
DEFAULT_MARGINS = tuple(0.98 * 2.0 ** (step / 4) for step in range(-24, 17))


@dataclass(frozen=True, eq=False)
class KernelFit:
    """A function in the kernel's space, as the bounds need it; made by `kernel_fit` or by hand.

    ``predictions`` is f*(X), (N,) for one output, else (N, C). ``complexity`` is ‖f*‖² or anything
    that is not below it, such as YᵀK⁻¹Y. ``trace`` is that of the whole kernel matrix, which for
    a trace-form Gram is C·Tr k; ``largest_diagonal`` the largest k(x, x) of one output. None of
    them has a ridge in it. ``residual`` is the relative residual of the worst solve.
    """

    predictions: Array
    complexity: float
    trace: float
    largest_diagonal: float
    residual: float = 0.0


def kernel_fit(meter: ComplexityMeter, targets: ArrayLike) -> KernelFit:
    """Fit targets with the kernel of a meter: the interpolant, or the ridge solution.

    With the meter's ridge λ (of (K + λI)α = Y), f*(X) = Kα and ‖f*‖² = αᵀKα. Since
    (K + λI)⁻¹K(K + λI)⁻¹ lies below both (K + λI)⁻¹ and K⁻¹, this norm is never above
    either complexity; with λ = 0 it is YᵀK⁻¹Y and f*(X) = Y.

    Parameters
    ----------
    meter
        From `factorise_gram`.
    targets
        Y, (N,) for the binary form, else (N, C).

    Raises
    ------
    KernelError
        K + λI is singular.
    MeasureError
        The targets do not fit the Gram or are not finite.
    """
    y = fit_targets(targets, meter.form, meter.gram_shape)
    if meter.singular is not None:
        raise KernelError(f"there is no kernel fit: {meter.singular}")
    columns = block_columns(y, meter.form, meter.gram_shape)
    fits: list[Array] = []
    complexity = worst = 0.0
    for factor, column in zip(meter.factors, columns, strict=True):
        alpha, residual = factor.solve(column)
        fits.append(factor.gram @ alpha)
        complexity += float(np.sum(alpha * fits[-1]))
        worst = max(worst, residual)
    diagonals = [np.diagonal(factor.gram) for factor in meter.factors]
    trace = float(sum(diagonal.sum() for diagonal in diagonals))
    return KernelFit(
        predictions=np.concatenate(fits, axis=1).reshape(y.shape),
        complexity=complexity,
        trace=operator_trace(trace, meter.form, y[0].size),
        largest_diagonal=float(max(diagonal.max() for diagonal in diagonals)),
        residual=worst,
    )


def binary_bound(
    fit: KernelFit,
    targets_N: ArrayLike,
    *,
    delta: float = 0.05,
    kappa: float | None = None,
    margins: Sequence[float] = DEFAULT_MARGINS,
) -> RiskBound:
    """Bound P(Y·f*(X) ≤ 0) for one output, by Thm. 3.

    (1/N) Σ φ_γ(sign(Yᵢ)·f*(Xᵢ)) + (2√(YᵀK⁻¹Y) + 2)/(γN)·√Tr K + 3√(ln(2M₀/δ)/(2N)), with
    M₀ = ⌈γ√N/(2√κ)⌉ and φ_γ the margin loss (see `margin_loss`).

    Parameters
    ----------
    fit
        f*, from `kernel_fit`. Its norm is all that the proof needs, so a ridge solution will do.
    targets_N
        Y, labels ±1 or soft targets in [−1, 1]; only the sign counts here. Y = 0 is an error.
    delta
        δ, the share of samples for which the bound may fail.
    kappa
        κ = sup k(x, x), known beforehand. By default the largest on these examples, an estimate of
        it, which the result notes.
    margins
        The grid of γ, chosen beforehand; see the head of this module.

    Raises
    ------
    MeasureError
        An array or number does not fit or is not in its range.
    """
    f_N = _check_fit(fit)
    y_N = np.asarray(targets_N, dtype=np.float64)
    if f_N.ndim != 1 or y_N.shape != f_N.shape:
        raise MeasureError(
            f"predictions of shape {f_N.shape} and targets of shape {y_N.shape} do not fit; "
            "give (N,) for both, or use multiclass_bound"
        )
    if not (np.abs(y_N) <= 1).all():
        raise MeasureError(
            f"targets go from {y_N.min():g} to {y_N.max():g}; binary coding lies in [−1, 1]"
        )
    agreement_N = np.sign(y_N) * f_N
    grid_J = _check_margins(margins)
    losses_J = np.array([margin_loss(agreement_N, float(margin)).mean() for margin in grid_J])
    return _lowest("Thm. 3", fit, losses_J, grid_J, 2.0, delta, kappa)


def distillation_bound(
    fit: KernelFit,
    teacher_targets_N: ArrayLike,
    teacher_risk: float,
    *,
    delta: float = 0.05,
    kappa: float | None = None,
    margins: Sequence[float] = DEFAULT_MARGINS,
) -> RiskBound:
    """Bound the risk on true labels of a student that fits a teacher, one output, by Prop. 5.

    The teacher's risk plus the three terms of Thm. 3 for the targets Yᵢ = 2σ(g(Xᵢ)/τ) − 1.

    Parameters
    ----------
    fit
        f*, from `kernel_fit` with the teacher's targets.
    teacher_targets_N
        Y, from `teacher_targets` with binary coding.
    teacher_risk
        P(Y·g(X) ≤ 0), a share. The bound is as sure as this number: an estimate from test examples
        has an error of its own, an upper bound at level 1 − δ′ gives a bound at 1 − δ − δ′.
    delta, kappa, margins
        As for `binary_bound`.

    Raises
    ------
    MeasureError
        An array or number does not fit or is not in its range.
    """
    if not 0 <= teacher_risk <= 1:
        raise MeasureError(f"the teacher's risk is {teacher_risk}; give a share in [0, 1]")
    bound = binary_bound(fit, teacher_targets_N, delta=delta, kappa=kappa, margins=margins)
    value = bound.value + teacher_risk
    return replace(
        bound,
        theorem="Prop. 5",
        value=value,
        vacuous=not bound.covered or value >= 1,
        teacher_risk=float(teacher_risk),
    )


def multiclass_bound(
    fit: KernelFit,
    labels_N: ArrayLike,
    *,
    delta: float = 0.05,
    kappa: float | None = None,
    margins: Sequence[float] = DEFAULT_MARGINS,
) -> RiskBound:
    """Bound P(f* puts no class clearly first but the right one), by Thm. 4.

    With ρ = f(x)_y − max_{y′≠y} f(x)_{y′}, bounds P(ρ ≤ 0) by
    (1/N) Σ 1{ρᵢ ≤ γ} + 4C(√(YᵀK⁻¹Y) + 1)/(γN)·√Tr K + 3√(ln(2M₀/δ)/(2N)), M₀ = ⌈γ√N/(4C√κ)⌉.
    The paper prints YᵀK⁻¹Y without its root in this theorem; its proof needs the root (the norm
    of f*), and the root is what is computed here.

    Parameters
    ----------
    fit
        f*, from `kernel_fit` with targets (N, C). Centring over classes does not change ρ.
    labels_N
        True classes, integers in 0 … C−1. The targets of the fit may be others, such as a teacher's.
    delta, margins
        As for `binary_bound`.
    kappa
        κ = sup k(x, x)_cc over examples and classes; by default as for `binary_bound`.

    Raises
    ------
    MeasureError
        An array or number does not fit or is not in its range.
    """
    f_NC = _check_fit(fit)
    if f_NC.ndim != 2 or f_NC.shape[1] < 2:
        raise MeasureError(
            f"predictions of shape {f_NC.shape} have no classes; give (N, C) with C >= 2, "
            "or use binary_bound"
        )
    examples, classes = f_NC.shape
    labels = check_labels(labels_N, classes)
    if len(labels) != examples:
        raise MeasureError(f"{len(labels)} labels do not fit {examples} predictions")
    grid_J = _check_margins(margins)
    rows = np.arange(examples)
    others_NC = f_NC.copy()
    others_NC[rows, labels] = -np.inf
    rho_N = f_NC[rows, labels] - others_NC.max(axis=1)
    losses_J = np.array([np.mean(rho_N <= margin) for margin in grid_J])
    return _lowest("Thm. 4", fit, losses_J, grid_J, 4.0 * classes, delta, kappa)


def margin_loss(values: ArrayLike, margin: float) -> Array:
    """Return φ_γ(α), γ > 0: 1 for α ≤ 0, 1 − α/γ on (0, γ], 0 above."""
    _check_margins([margin])
    return np.clip(1.0 - np.asarray(values, dtype=np.float64) / margin, 0.0, 1.0)


def _lowest(
    theorem: str,
    fit: KernelFit,
    losses_J: Array,
    margins_J: Array,
    factor: float,
    delta: float,
    kappa: float | None,
) -> RiskBound:
    """Return the lowest bound over the grid. ``factor`` is 2 in Thm. 3 and 4C in Thm. 4."""
    if not 0 < delta < 1:
        raise MeasureError(f"delta is {delta}; give a probability within (0, 1)")
    examples, count = len(fit.predictions), len(margins_J)
    kappa, notes = _check_kappa(fit, kappa)
    norm = math.sqrt(fit.complexity)
    complexity_J = factor * (norm + 1) * math.sqrt(fit.trace) / (margins_J * examples)
    norms_J = np.ceil(margins_J * math.sqrt(examples) / (factor * math.sqrt(kappa)))
    confidence_J = 3 * np.sqrt(np.log(2 * norms_J * count / delta) / (2 * examples))
    values_J = losses_J + complexity_J + confidence_J
    covered_J = np.ceil(norm) <= norms_J
    # A sum that is not covered is no bound, so any covered one goes before it.
    best = int(np.lexsort((values_J, ~covered_J))[0])
    covered = bool(covered_J[best])
    if not covered:
        notes.append(
            f"the norm {norm:.3g} is above M₀ = {norms_J.max():.0f} at every margin, "
            "so the theorem's union bound does not cover it"
        )
    return RiskBound(
        theorem=theorem,
        value=float(values_J[best]),
        vacuous=not covered or bool(values_J[best] >= 1),
        margin=float(margins_J[best]),
        margin_loss=float(losses_J[best]),
        complexity_term=float(complexity_J[best]),
        confidence_term=float(confidence_J[best]),
        teacher_risk=None,
        norms=int(norms_J[best]),
        covered=covered,
        examples=examples,
        delta=float(delta),
        margins=count,
        kappa=kappa,
        notes=tuple(notes),
    )


def _check_kappa(fit: KernelFit, kappa: float | None) -> tuple[float, list[str]]:
    """Return κ and notes about it."""
    if kappa is None:
        return float(fit.largest_diagonal), [
            f"kappa is the largest k(x, x) of {len(fit.predictions)} examples, "
            "an estimate of its supremum"
        ]
    if not (np.isfinite(kappa) and kappa > 0):
        raise MeasureError(f"kappa is {kappa}; give a finite number > 0")
    if kappa < fit.largest_diagonal:
        return float(kappa), [
            f"kappa {kappa:.3g} is below the largest k(x, x) seen, {fit.largest_diagonal:.3g}: "
            "no supremum, but allowed if it was fixed beforehand"
        ]
    return float(kappa), []


def _check_fit(fit: KernelFit) -> Array:
    """Return the predictions, or raise if the fit's numbers are out of range."""
    f = np.asarray(fit.predictions, dtype=np.float64)
    if f.size == 0 or not np.isfinite(f).all():
        raise MeasureError(f"predictions of shape {f.shape} are none or hold NaN or infinity")
    # An infinite complexity is that of a singular K: the bound is then vacuous, not wrong.
    if not fit.complexity >= 0:
        raise MeasureError(f"the complexity is {fit.complexity}; give a number >= 0")
    for name, value in (("trace", fit.trace), ("largest diagonal", fit.largest_diagonal)):
        if not (np.isfinite(value) and value > 0):
            raise MeasureError(f"the {name} is {value}; give a finite number > 0")
    return f


def _check_margins(margins: Sequence[float]) -> Array:
    grid_J = np.asarray(margins, dtype=np.float64)
    if grid_J.ndim != 1 or grid_J.size == 0:
        raise MeasureError(f"the margins have shape {grid_J.shape}; give at least one number")
    if not (np.isfinite(grid_J).all() and (grid_J > 0).all()):
        raise MeasureError(f"the margins go down to {grid_J.min():g}; give finite numbers > 0")
    return grid_J
