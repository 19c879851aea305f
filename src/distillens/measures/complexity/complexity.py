"""Supervision complexity: how hard targets are for a kernel.

Source: Harutyunyan et al., ICLR 2023, arXiv 2301.12245, Def. 1 and eqs. 49, 50.
Shapes: N examples, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distillens.errors import MeasureError
from distillens.linalg import Factor, SingularGramError, factorise, quadratic_form
from distillens.measures.complexity.forms import fit_targets, gram_blocks, operator_trace
from distillens.measures.complexity.targets import teacher_targets
from distillens.results.complexity import ComplexityValue, KernelForm

Array = NDArray[np.float64]


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
        values, residual = self._quadratic_forms(np.stack(sets, axis=-1))
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

    def _quadratic_forms(self, sets: Array) -> tuple[Array, float]:
        """YᵀK⁻¹Y for each Y along the last axis of (N, S) or (N, C, S); and the worst residual."""
        count = sets.shape[-1]
        if self.singular is not None:
            return np.full(count, np.inf), float("inf")
        if self.form == "class-diagonal":
            parts = [quadratic_form(factor, sets[:, c]) for c, factor in enumerate(self.factors)]
        else:
            # Rows of the Gram first; for "trace" the classes are more right-hand sides, for
            # "full" row n·C + c is class c of example n.
            rows = len(self.factors[0].gram)
            values, residual = quadratic_form(self.factors[0], sets.reshape(rows, -1))
            parts = [(values.reshape(-1, count).sum(axis=0), residual)]
        return np.sum([value for value, _ in parts], axis=0), max(error for _, error in parts)


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
