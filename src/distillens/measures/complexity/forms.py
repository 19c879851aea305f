"""The forms a Gram of several outputs can take, and which arrays fit each.

"binary": (N, N), the kernel of one output. "class-diagonal": (C, N, N), the kernels K_cc of each
logit, which stand for a block matrix without entries between classes. "trace": (N, N),
k = (1/C) Σ_c K_cc, which stands for k ⊗ I. "full": (NC, NC), row n·C + c for class c of example n.
Shapes: N examples, C classes.
"""

from __future__ import annotations

from typing import get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distillens.errors import MeasureError
from distillens.files.array_likes import as_array
from distillens.results.complexity import KernelForm

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


def operator_trace(trace: float, form: KernelForm, outputs: int) -> float:
    """Return the trace of the block matrix that a Gram (of trace ``trace``) stands for.

    One kernel k for all classes stands for k ⊗ I, of trace C·Tr k; in the other forms the blocks
    are all there is.
    """
    return outputs * trace if form == "trace" else trace
