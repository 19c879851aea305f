"""Reference values of the supervision complexity: what a memorising kernel and random labels give.

Source: Harutyunyan et al., ICLR 2023, arXiv 2301.12245, the remarks on the adjusted complexity; the
class-diagonal and trace forms are ours. Shapes: N examples, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distillens.errors import KernelError, MeasureError
from distillens.files.array_likes import as_array
from distillens.measures.complexity.complexity import (
    ComplexityMeter,
    check_form,
    operator_trace,
)
from distillens.results.complexity import KernelForm

Array = NDArray[np.float64]


@dataclass(frozen=True)
class RandomLabelReference:
    """Expected complexity of independent zero-mean labels on a Gram.

    ``plain`` is E[YᵀK⁻¹Y]. ``adjusted_star`` is (1/N)·√(E[YᵀK⁻¹Y]·Tr K), the root mean square of
    eq. 50 over draws; the mean of eq. 50 is a little lower (Jensen). The floors are what no Gram
    of the same traces (for ``adjusted_star_floor``: no Gram at all) goes below. ``residual`` is
    the relative residual of the worst solve, ``ridge`` what was added to the diagonal.
    """

    plain: float
    plain_floor: float
    adjusted_star: float
    adjusted_star_floor: float
    ridge: float
    residual: float


def diagonal_reference(targets: ArrayLike, form: KernelForm) -> float:
    """Return the least adjusted* complexity (eq. 50) of these targets on any diagonal kernel.

    A diagonal kernel sees no two examples as alike: it can only memorise. By Cauchy-Schwarz its
    (1/N)·√(YᵀK⁻¹Y·Tr K) is at least (1/N) Σ |Yᵢ|, met where K is in proportion to |Y|. With one
    diagonal k for all classes (trace form) it is at least (√C/N) Σᵢ ‖Yᵢ‖₂. Targets above it are
    harder for a kernel than memorising them with the right weights.

    Parameters
    ----------
    targets
        Y, (N,) for the binary form, else (N, C).
    form
        Form of the Gram that it is compared with.

    Raises
    ------
    MeasureError
        The form is unknown; or the targets do not fit it, are not finite or are none.
    """
    check_form(form)
    y = np.asarray(as_array(targets), dtype=np.float64)
    if y.ndim != (1 if form == "binary" else 2) or y.size == 0:
        wanted = "(N,)" if form == "binary" else "(N, C)"
        raise MeasureError(f"targets of shape {y.shape} do not fit the form {form}; give {wanted}")
    if not np.isfinite(y).all():
        raise MeasureError("the targets hold NaN or infinity; look where they were computed")
    if form == "trace":
        return float(np.sqrt(y.shape[1]) * np.linalg.norm(y, axis=1).sum()) / len(y)
    return float(np.abs(y).sum()) / len(y)


def random_label_reference(
    meter: ComplexityMeter,
    classes: int = 2,
    second_moment: float | ArrayLike | None = None,
) -> RandomLabelReference:
    """Return the complexity of random labels on a Gram in closed form instead of by sampling.

    For labels that are independent over examples and of mean zero, E[YᵀK⁻¹Y] = E[Y²]·Tr K⁻¹, and
    Tr K⁻¹ ≥ N²/Tr K. For the class-diagonal form it is Σ_c E[Y_c²]·Tr K_cc⁻¹ ≥ Σ_c E[Y_c²]·N²/Tr K_cc,
    for the trace form Σ_c E[Y_c²]·Tr k⁻¹. Adjusted, the floors are √E[Y²] (binary),
    Σ_c √E[Y_c²] (class-diagonal) and √(C·Σ_c E[Y_c²]) (trace), whatever the Gram.

    Parameters
    ----------
    meter
        From `factorise_gram`. Its ridge counts as part of K, as in `ComplexityMeter.measure`.
    classes
        C; 2 for the binary form.
    second_moment
        E[Y²], a number or one per class, (C,). By default that of uniformly sampled labels, as coded by
        `random_label_targets`: 1 for the binary form, else (1/C)(1 − 1/C).

    Raises
    ------
    KernelError
        K is singular.
    MeasureError
        The form is full (classes of one example are not independent, so the diagonal of K⁻¹ does
        not suffice), the classes do not fit, or a second moment is not finite and ≥ 0.
    """
    if meter.form == "full":
        raise MeasureError(
            "the full form has no closed reference, since the classes of one example depend on "
            "each other; use the class-diagonal or trace form, or measure random_label_targets"
        )
    if meter.singular is not None:
        raise KernelError(f"there is no reference value: {meter.singular}")
    moments = _moments(meter, classes, second_moment)
    rows = meter.gram_shape[-1]
    inverses = [factor.solve(np.eye(rows)) for factor in meter.factors]
    traces = np.array([np.trace(factor.gram) + factor.ridge * rows for factor in meter.factors])
    # One kernel serves all classes in the trace form; then both arrays are of length 1.
    plain = float(np.sum(moments * np.array([np.trace(one) for one, _ in inverses])))
    floor = float(np.sum(moments * rows**2 / traces))
    if meter.form == "trace":
        adjusted_floor = np.sqrt(len(moments) * np.sum(moments))
    else:
        adjusted_floor = np.sum(np.sqrt(moments))
    trace = operator_trace(float(traces.sum()), meter.form, len(moments))
    return RandomLabelReference(
        plain=plain,
        plain_floor=floor,
        adjusted_star=float(np.sqrt(plain * trace)) / rows,
        adjusted_star_floor=float(adjusted_floor),
        ridge=meter.ridge,
        residual=max(residual for _, residual in inverses),
    )


def random_target_level(
    eigenvalues_K: ArrayLike, form: KernelForm, outputs: int = 1, ridge: float = 0.0
) -> float:
    """Return the normalised* complexity of random targets of any size, from a Gram's eigenvalues.

    The targets are independent with mean zero and one variance; for uniformly sampled labels it is
    ``adjusted_star`` of `random_label_reference` over their size, without its N solves.

    Parameters
    ----------
    eigenvalues_K
        Eigenvalues of the Gram, K = N or, for the class-diagonal form, those of all blocks, K = CN.
    form
        "binary", "class-diagonal" or "trace".
    outputs
        C; 1 for the binary form.
    ridge
        Added to each eigenvalue.

    Raises
    ------
    MeasureError
        The form is full or unknown, or the eigenvalues do not fit the outputs.
    """
    check_form(form)
    if form == "full":
        raise MeasureError("the full form has no closed reference; measure random_label_targets")
    shifted_K = np.asarray(eigenvalues_K, dtype=np.float64) + ridge
    blocks = outputs if form == "class-diagonal" else 1
    examples, rest = divmod(shifted_K.size, max(blocks, 1))
    if shifted_K.ndim != 1 or rest or not examples or outputs < 1:
        raise MeasureError(
            f"eigenvalues of shape {shifted_K.shape} do not fit {outputs} outputs of the form {form}"
        )
    if shifted_K.min() <= 0:
        return float("inf")
    # Each output has 1/C of ‖Y‖²; a class-diagonal Gram's blocks are all there already.
    inverse = float(np.sum(1 / shifted_K)) / blocks
    trace = operator_trace(float(shifted_K.sum()), form, outputs)
    return float(np.sqrt(inverse * trace)) / examples


def _moments(meter: ComplexityMeter, classes: int, given: float | ArrayLike | None) -> Array:
    """Return E[Y²] of each output, (C,), or (1,) for the binary form."""
    blocks = len(meter.factors)
    fits = {
        "binary": classes == 2,
        "class-diagonal": classes == blocks and classes >= 2,
        "trace": classes >= 2,
    }
    if not fits[meter.form]:
        raise MeasureError(
            f"{classes} classes do not fit a {meter.form} Gram of shape {meter.gram_shape}; "
            "give as many as the targets have (2 for the binary form)"
        )
    outputs = 1 if meter.form == "binary" else classes
    uniform = 1.0 if meter.form == "binary" else (1 / classes) * (1 - 1 / classes)
    moments = np.asarray(uniform if given is None else given, dtype=np.float64)
    if moments.shape not in ((), (outputs,)):
        raise MeasureError(
            f"second moments of shape {moments.shape} do not fit {outputs} outputs; "
            f"give a number or ({outputs},)"
        )
    if not (np.isfinite(moments).all() and (moments >= 0).all()):
        raise MeasureError(f"the second moment is {moments}; give finite numbers >= 0")
    return np.broadcast_to(moments, (outputs,))
