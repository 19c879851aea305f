"""Supervision complexity: how hard targets are for a kernel, and what memorising and random labels give.

A Gram of several outputs has one of four forms. "binary": (N, N), the kernel of one output.
"class-diagonal": (C, N, N), the kernels K_cc of each logit, which stand for a block matrix without
entries between classes. "trace": (N, N), k = (1/C) Σ_c K_cc, which stands for k ⊗ I. "full":
(NC, NC), row n·C + c for class c of example n.

Source: Harutyunyan et al., ICLR 2023, arXiv 2301.12245, Def. 1, eqs. 49, 50 and the remarks on the
adjusted complexity; references of other forms than binary are ours.
Shapes: N examples, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distillens.errors import MeasureError
from distillens.files.array_likes import as_array
from distillens.linalg import Factor, SingularGramError, factorise, quadratic_form
from distillens.measures.complexity.targets import teacher_targets
from distillens.results.complexity import ComplexityValue, KernelForm

Array = NDArray[np.float64]

_SHAPES = {
    "binary": "(N, N)",
    "class-diagonal": "(C, N, N)",
    "trace": "(N, N)",
    "full": "(NC, NC)",
}


def gram_blocks(gram: ArrayLike, form: KernelForm) -> NDArray:
    """Return a Gram as blocks: (C, N, N) for the class-diagonal form, else one, (1, rows, rows).

    Raises
    ------
    MeasureError
        The form is unknown, or the Gram has another number of axes.
    """
    check_form(form)
    array = as_array(gram)
    if array.ndim != (3 if form == "class-diagonal" else 2) or array.size == 0:
        raise MeasureError(
            f"a {form} Gram has shape {_SHAPES[form]}, this one has {array.shape}; "
            "give another form or Gram"
        )
    return array if array.ndim == 3 else array[None]


def check_form(form: str) -> None:
    """Raise MeasureError for a form that is not known."""
    if form not in get_args(KernelForm):
        raise MeasureError(f"unknown form {form!r}; known: {', '.join(get_args(KernelForm))}")


def fit_targets(
    array: ArrayLike, form: KernelForm, gram_shape: tuple[int, ...], what: str = "targets"
) -> Array:
    """Return targets or predictions in float64: (N,) for the binary form, else (N, C).

    Raises
    ------
    MeasureError
        They do not fit a Gram of that form and shape, or are not finite.
    """
    y = np.asarray(as_array(array), dtype=np.float64)
    side = gram_shape[-1]
    if form == "binary":
        good, wanted = y.shape == (side,), f"({side},)"
    elif form == "class-diagonal":
        classes = gram_shape[0]
        good, wanted = y.shape == (side, classes), f"({side}, {classes})"
    elif form == "trace":
        good, wanted = y.ndim == 2 and len(y) == side and y.size > 0, f"({side}, C)"
    else:
        good, wanted = y.ndim == 2 and y.size == side, f"(N, C) with N·C = {side}"
    if not good:
        raise MeasureError(
            f"{what} of shape {y.shape} do not fit a {form} Gram of shape "
            f"{gram_shape}; give {wanted}"
        )
    if not np.isfinite(y).all():
        raise MeasureError(f"the {what} hold NaN or infinity; look where they were computed")
    return y


def block_columns(y: Array, form: KernelForm, gram_shape: tuple[int, ...]) -> list[Array]:
    """Return checked targets as the columns that each block of a Gram is multiplied with.

    Classes are further columns of the one Gram of the trace form, and columns of their own Grams in the
    class-diagonal form. Row n·C + c of a full Gram is class c of example n.
    """
    if form == "class-diagonal":
        return [y[:, c : c + 1] for c in range(y.shape[1])]
    return [y.reshape(gram_shape[-1], -1)]


def operator_trace(trace: float, form: KernelForm, outputs: int) -> float:
    """Return the trace of the block matrix that a Gram (of trace ``trace``) stands for.

    One kernel k for all classes stands for k ⊗ I, of trace C·Tr k; in the other forms the blocks
    are all there is.
    """
    return outputs * trace if form == "trace" else trace


@dataclass(frozen=True, eq=False)
class ComplexityMeter:
    """A factorised Gram that measures any number of target sets; made by `factorise_gram`.

    ``factors`` holds one factor, or one per class in the class-diagonal form; it is empty where K is
    singular, and ``singular`` is then the reason. ``trace`` is the trace of one factorised
    Gram, or the sum over classes, with the ridge.
    """

    form: KernelForm
    factors: tuple[Factor, ...]
    gram_shape: tuple[int, ...]
    trace: float
    ridge: float
    singular: str | None = None

    def measure(self, targets: ArrayLike, predictions: ArrayLike | None = None) -> ComplexityValue:
        """Measure one target array.

        Parameters
        ----------
        targets
            Y, (N,) for the binary form, else (N, C); coded as in
            `distillens.measures.complexity.targets`.
        predictions
            f(X) of the student whose kernel this is, coded and shaped as the targets (see
            `prediction_targets`). Without them eq. 49 is left out.

        Returns
        -------
        ComplexityValue
            All values are infinite where K is singular (Def. 1).

        Raises
        ------
        MeasureError
            An array does not fit the Gram or is not finite.
        """
        y = fit_targets(targets, self.form, self.gram_shape)
        sets = [y]
        if predictions is not None:
            f = fit_targets(predictions, self.form, self.gram_shape, "predictions")
            if f.shape != y.shape:
                raise MeasureError(
                    f"predictions of shape {f.shape} do not fit targets of shape {y.shape}; "
                    "code both the same way"
                )
            sets.append(y - f)
        examples = len(y)
        outputs = 1 if y.ndim == 1 else y.shape[1]
        trace = operator_trace(self.trace, self.form, outputs)
        values, residual = self._quadratic_forms(sets)
        adjusted = [float(np.sqrt(value * trace)) / examples for value in values]
        size = float(np.sqrt(np.sum(y**2) / examples))
        return ComplexityValue(
            plain=float(values[0]),
            adjusted=adjusted[1] if predictions is not None else None,
            adjusted_star=adjusted[0],
            normalised=_ratio(adjusted[1], size) if predictions is not None else None,
            normalised_star=_ratio(adjusted[0], size),
            target_size=size,
            ridge=self.ridge,
            residual=residual,
        )

    def _quadratic_forms(self, sets: list[Array]) -> tuple[Array, float]:
        """Return YᵀK⁻¹Y for each Y, and the residual of the worst solve."""
        if self.singular is not None:
            return np.full(len(sets), np.inf), float("inf")
        found, worst = np.zeros(len(sets)), 0.0
        columns = [block_columns(y, self.form, self.gram_shape) for y in sets]
        for factor, *each in zip(self.factors, *columns, strict=True):
            values, residual = quadratic_form(factor, np.concatenate(each, axis=1))
            found += values.reshape(len(sets), -1).sum(axis=1)
            worst = max(worst, residual)
        return found, worst


def factorise_gram(gram: ArrayLike, form: KernelForm, ridge: float = 0.0) -> ComplexityMeter:
    """Factorise a Gram once, to measure several target sets against it.

    Parameters
    ----------
    gram
        In the shape that the form asks for.
    form
        "binary": (N, N), the kernel of one output. "class-diagonal": (C, N, N), the kernels K_cc of
        each logit. "trace": (N, N), (1/C) Σ_c K_cc, used for every class. "full": (NC, NC), row
        n·C + c for class c of example n.
    ridge
        Added to the diagonal of what is solved with; Tr K includes it, so that K means one matrix.

    Returns
    -------
    ComplexityMeter
        If K is singular, its values are infinite.

    Raises
    ------
    KernelError
        The Gram is not finite, not symmetric or has a negative eigenvalue; or the ridge is
        negative.
    MeasureError
        The form is unknown, or the Gram has another number of axes.
    """
    blocks = gram_blocks(gram, form)
    factors: list[Factor] = []
    singular = None
    for block in blocks:
        try:
            factors.append(factorise(block, ridge))
        except SingularGramError as error:
            # Not the end: the other blocks may still be no Gram at all, which is an error.
            singular = singular or str(error)
    traces = np.trace(blocks, axis1=1, axis2=2, dtype=np.float64)
    return ComplexityMeter(
        form=form,
        factors=() if singular else tuple(factors),
        gram_shape=blocks.shape if form == "class-diagonal" else blocks.shape[1:],
        trace=float(traces.sum()) + float(ridge) * blocks.shape[0] * blocks.shape[1],
        ridge=float(ridge),
        singular=singular,
    )


def supervision_complexity(
    gram: ArrayLike,
    targets: ArrayLike,
    predictions: ArrayLike | None = None,
    *,
    form: KernelForm,
    ridge: float = 0.0,
) -> ComplexityValue:
    """Measure the complexity of one target array against one Gram.

    ``plain`` is YᵀK⁻¹Y (Def. 1), ``adjusted`` (1/N)·√((Y − f)ᵀK⁻¹(Y − f)·Tr K) (eq. 49) and
    ``adjusted_star`` the same without f (eq. 50). For several targets against one Gram use
    `factorise_gram`, which solves only once. See there for the forms and what is raised, and
    `ComplexityMeter.measure` for the arrays.
    """
    return factorise_gram(gram, form, ridge).measure(targets, predictions)


def gradient_residual(
    meter: ComplexityMeter,
    targets: ArrayLike,
    student_logits_NC: ArrayLike,
    temperature: float = 1.0,
) -> float:
    """Eq. 49 with the gradient residual Y − σ(f/τ) in place of Y − f. Ours, not the paper's.

    A student trained with cross-entropy has no values that f should reach; what moves it is this
    residual.

    Parameters
    ----------
    meter
        Meter of the student's Gram.
    targets
        Y as for `ComplexityMeter.measure`.
    student_logits_NC
        f(X), (N, C) or (N, 1) for the binary form; not coded.
    temperature
        τ of the student's loss.
    """
    value = meter.measure(targets, teacher_targets(student_logits_NC, temperature)).adjusted
    assert value is not None  # predictions were given
    return value


def _ratio(value: float, size: float) -> float:
    """Divide by the target's size; all-zero targets have no normalised complexity."""
    return value / size if size > 0 else float("nan")


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


def random_target_level(
    eigenvalues_K: ArrayLike, form: KernelForm, outputs: int = 1, ridge: float = 0.0
) -> float:
    """Return the normalised* complexity of random targets of any size, from a Gram's eigenvalues.

    The targets are independent over examples with mean zero and one variance, such as uniformly sampled
    labels. For them E[YᵀK⁻¹Y] = E[Y²]·Tr K⁻¹; the class-diagonal and trace forms sum it over classes.
    The result is (1/N)·√(E[YᵀK⁻¹Y]·Tr K), the root mean square of eq. 50 over draws, divided by the
    targets' size √E[‖Y‖²/N]. It is at least 1 (binary) or √C (several outputs), whatever the Gram, and
    the mean of eq. 50 is a little lower (Jensen).

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
