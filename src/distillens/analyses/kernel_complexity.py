"""Supervision complexity of a user's own model, data and targets, with a certified interval.

Where the Gram fits, it is computed in float64 and factorised, and the interval bounds how far its own
rounding could move each value. Where it does not, the same form is solved by iteration on products
with the kernel, within an interval that holds it.

Source: Harutyunyan et al., ICLR 2023, arXiv 2301.12245, Def. 1 and eqs. 49, 50. Shapes: N examples,
C outputs, S target sets.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from distillens.analyses.gram_profile import compare_kernels, decompose, profile
from distillens.errors import KernelError, MeasureError
from distillens.files.array_likes import as_array
from distillens.kernel import EmpiricalNTK, NTKGram
from distillens.linalg import (
    certified_quadratic_form,
    perturbed_quadratic_form,
    rp_cholesky,
)
from distillens.measures import ComplexityMeter, factorise_gram
from distillens.measures.complexity.complexity import fit_targets
from distillens.progress import Progress, silent
from distillens.results.complexity import CertifiedComplexity, KernelComplexity

Array = NDArray[np.float64]

_COPIES = 4
"""Arrays of the Gram's size in a factorisation: the Gram, its factor and two temporary ones."""
_UNCERTIFIED_RIDGE = 1e-6
"""Ridge for the uncertified values of a singular kernel, as a share of the mean diagonal."""
_RANK = 500
"""Number of columns of the preconditioner."""
_SAFETY = 10.0
"""Factor between the error of a product measured on one vector and the bound assumed for all."""


@dataclass(frozen=True)
class _Solved:
    """YᵀK⁻¹Y for each column: the value, its interval and whether it is narrow enough."""

    method: str
    trace: float
    """Trace of the kernel with its ridge."""
    ridge: float
    value: Array
    low: Array
    high: Array
    determined: NDArray[np.bool_]
    notes: tuple[str, ...]
    meter: ComplexityMeter | None = None
    """Of the Gram, where there is one."""


def kernel_complexity(
    model: nn.Module,
    inputs: Tensor,
    targets: Mapping[str, ArrayLike],
    *,
    outputs: int | tuple[int, int],
    ridge: float = 0.0,
    max_memory: int | None = None,
    width: float = 0.02,
    profiled: bool = False,
    labels: str | None = None,
    teacher: nn.Module | None = None,
    progress: Progress = silent,
) -> KernelComplexity:
    """Measure the supervision complexity of target sets for one output of a network.

    Parameters
    ----------
    model
        Maps (B, …) to (B, O); it is not modified.
    inputs
        N examples, preprocessed for the model.
    targets
        Y of each set, (N,), by name; coded as in `distillens.measures.complexity.targets`.
    outputs
        The logit, or two for their difference.
    ridge
        Added to the kernel's diagonal, as a share of its mean.
    max_memory
        Bytes; by default three quarters of the free memory. Where the Gram and its factor do not fit,
        the values are solved for by iteration, which needs a ridge.
    width
        The widest interval, as a share of the value, that counts as determined.
    profiled
        Whether spectrum, references and bounds are measured too, where a Gram is formed; its
        eigenvectors take about ten times as long as its factor.
    labels
        The target set that holds true labels, where one does. The bounds of the others are then on
        the risk of these (Prop. 5), else on that of each set itself (Thm. 3).
    teacher
        A network with the same inputs and outputs, whose kernel is compared with the model's.
    progress
        Progress display.

    Returns
    -------
    KernelComplexity
        A value and its interval for each target set, and the properties of the Gram.

    Raises
    ------
    KernelError
        As `EmpiricalNTK`; or the ridge is negative or not finite, or 0 where the Gram does not fit;
        or the teacher's kernel cannot be compared.
    MeasureError
        A target set has another length or is not finite; there is none; no set is called
        ``labels``.
    """
    began = time.perf_counter()
    if not (np.isfinite(ridge) and ridge >= 0):
        raise KernelError(f"the ridge is {ridge}; give a finite share >= 0 of the mean diagonal")
    kernel = EmpiricalNTK(
        model, outputs=outputs, dtype=torch.float64, max_memory=max_memory, progress=progress
    )
    values = kernel.outputs_of(inputs)[:, 0].cpu().numpy()
    sets = _columns(targets, len(inputs))
    if labels is not None and labels not in targets:
        raise MeasureError(f"no targets are called {labels!r}, only {', '.join(targets)}")
    # An incompatible teacher is refused before the work starts.
    compared = (
        None if teacher is None else compare_kernels(model, teacher, inputs, outputs, progress)
    )
    y_NM = np.concatenate([sets, sets - values[:, None]], axis=1)
    needed = _COPIES * 8 * len(inputs) ** 2
    if needed <= kernel.budget:
        gram = kernel.gram(inputs)
        # Before the factorisation, which reuses the memory of the eigenvectors.
        decomposed = None
        if profiled:
            named = dict(zip(targets, sets.T, strict=True))
            decomposed = decompose(gram.values.cpu().numpy(), "binary", named)
        solved = _by_factor(gram, y_NM, ridge)
        missing = "the Gram is zero"
    else:
        if ridge == 0:
            raise KernelError(
                f"a Gram of {len(inputs)} examples and its factor take {needed / 2**30:.3g} GiB, "
                f"max_memory is {kernel.budget / 2**30:.3g} GiB; give a ridge, with which it is "
                "solved by iteration, or fewer examples"
            )
        gram = decomposed = None
        solved = _by_iteration(kernel, inputs, y_NM, ridge, width)
        missing = "no Gram was formed"
    notes = [*(kernel.notes if gram is None else gram.notes), *solved.notes]
    if profiled and decomposed is None:
        notes.append(f"spectrum, references and bounds: not computed, {missing}")
    found = None
    if decomposed is not None:
        assert solved.meter is not None  # the Gram was factorised
        found = profile(decomposed, solved.meter, labels)
    uncertified = None
    # A share of a zero trace would be no ridge.
    if gram is not None and np.isinf(solved.value).any() and ridge == 0 and solved.trace > 0:
        uncertified = _by_factor(gram, y_NM, _UNCERTIFIED_RIDGE)
    return KernelComplexity(
        examples=len(inputs),
        outputs=str(outputs),
        method=solved.method,
        trace=solved.trace,
        ridge=solved.ridge,
        targets=_certified(targets, sets, solved),
        with_ridge=None if uncertified is None else uncertified.ridge,
        uncertified=() if uncertified is None else _certified(targets, sets, uncertified),
        seconds=time.perf_counter() - began,
        notes=tuple(notes),
        profile=found,
        teacher_kernel=compared,
    )


def _by_factor(gram: NTKGram, y_NM: Array, ridge: float) -> _Solved:
    values = gram.values.cpu().numpy()
    trace = float(np.trace(values))
    added = ridge * trace / len(values)
    trace += added * len(values)
    method = "Cholesky, float64"
    meter = factorise_gram(values, "binary", added)
    if meter.singular is not None:
        infinite = np.full(y_NM.shape[1], np.inf)
        known = np.ones(len(infinite), dtype=bool)
        notes = (meter.singular,)
        return _Solved(method, trace, added, infinite, infinite, infinite, known, notes, meter)
    # The largest eigenvalue is at most the trace; the error of the check plus rounding in float64.
    error = max(gram.check.residual, float(np.finfo(np.float64).eps)) * trace
    moved = perturbed_quadratic_form(meter.factors[0], y_NM, error)
    notes = (f"the Gram's error is taken as {error:.2g} in the 2-norm, from its check",)
    return _Solved(
        method, trace, added, moved.value, moved.low, moved.high, moved.determined, notes, meter
    )


def _by_iteration(
    kernel: EmpiricalNTK, inputs: Tensor, y_NM: Array, ridge: float, width: float
) -> _Solved:
    product = kernel.product(inputs)
    diagonal = product.diagonal().cpu().numpy()
    trace = float(diagonal.sum())
    added = ridge * trace / len(diagonal)
    error = _SAFETY * kernel.product_error(product, inputs)

    def columns(numbers: NDArray[np.intp]) -> Array:
        return product.columns(torch.as_tensor(numbers)).cpu().numpy()

    def times(x_NM: Array) -> Array:
        return product(torch.as_tensor(x_NM)).cpu().numpy()

    low_rank = rp_cholesky(columns, diagonal, min(_RANK, len(diagonal)), column_error=error)
    values = certified_quadratic_form(
        times, y_NM, added, product_error=error, preconditioner=low_rank, width=width
    )
    how = "gradients kept" if product.kept else "gradients made for each product"
    return _Solved(
        f"conjugate gradients, float64, {how}",
        trace + added * len(diagonal),
        added,
        values.estimate,
        values.low,
        values.high,
        values.converged,
        (
            f"a product's error is taken as {error:.2g} of the kernel's norm, {_SAFETY:g} times "
            "the error on a random vector",
            f"{values.products} products, {len(low_rank.eigenvalues)} columns in the preconditioner",
        ),
    )


def _certified(
    names: Iterable[str], sets_NS: Array, solved: _Solved
) -> tuple[CertifiedComplexity, ...]:
    """Return the values of the S target sets, whose columns are followed by those of Y − f."""
    examples, count = sets_NS.shape
    # NaN, without a warning, where the kernel is zero and so the value infinite.
    adjusted_M = [float(np.sqrt(float(one) * solved.trace)) / examples for one in solved.value]
    found = []
    for place, name in enumerate(names):
        moved = place + count
        size = float(np.sqrt(np.mean(sets_NS[:, place] ** 2)))
        found.append(
            CertifiedComplexity(
                name=name,
                plain=float(solved.value[place]),
                plain_low=float(solved.low[place]),
                plain_high=float(solved.high[place]),
                adjusted_star=adjusted_M[place],
                adjusted=adjusted_M[moved],
                normalised=adjusted_M[moved] / size if size > 0 else float("nan"),
                target_size=size,
                determined=bool(solved.determined[place] and solved.determined[moved]),
            )
        )
    return tuple(found)


def _columns(targets: Mapping[str, ArrayLike], examples: int) -> Array:
    if not isinstance(targets, Mapping):
        raise MeasureError(
            "targets must be a mapping from names to numbers, such as {'labels': (N,)}, got "
            f"{type(targets).__name__}"
        )
    if not targets:
        raise MeasureError("no targets were given; name at least one set, such as {'labels': (N,)}")
    found = []
    for name, values in targets.items():
        given = as_array(values)
        if given.dtype.kind not in "fiub":
            raise MeasureError(f"targets {name!r} are of type {given.dtype}; give real numbers")
        found.append(fit_targets(given, "binary", (examples, examples), f"targets {name!r}"))
    return np.stack(found, axis=1)
