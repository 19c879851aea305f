"""NumPy arrays from the arrays and tensors of other libraries, none of which is imported here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillens.errors import DataError, one_line


def as_array(value: Any) -> NDArray:
    """Return an array-like as a NumPy array; memory maps stay memory maps.

    Parameters
    ----------
    value
        A NumPy array, nested lists, a PyTorch tensor of any type and device (also one that requires
        a gradient), or an array of JAX, TensorFlow, CuPy or SciPy's sparse matrices. A list may
        hold one tensor per example. Types of 16 bits and less that NumPy lacks become float32.

    Raises
    ------
    DataError
        The value is ragged, masked, or not an array.

    Examples
    --------
    >>> as_array([[0, 1], [2, 3]]).shape
    (2, 2)
    """
    if isinstance(value, np.ma.MaskedArray):
        if np.ma.getmaskarray(value).any():
            raise DataError("a masked array has masked values; fill them or leave their rows out")
        return value.data
    if isinstance(value, np.matrix):
        # Its columns and sums are matrices again.
        return np.asarray(value)
    if isinstance(value, np.ndarray):
        return _known_type(value)
    if hasattr(value, "detach") and hasattr(value, "cpu"):
        return _from_torch(value)
    if hasattr(value, "__cuda_array_interface__") and hasattr(value, "get"):
        return as_array(value.get())
    if hasattr(value, "toarray"):
        return as_array(value.toarray())
    array: Any = value
    if isinstance(value, Sequence) and len(value) and hasattr(value[0], "detach"):
        array = [_from_torch(one) for one in value]
    try:
        return _known_type(np.asanyarray(array))
    except (TypeError, ValueError) as error:
        if hasattr(array, "__dlpack__"):
            return as_array(np.from_dlpack(array))
        raise DataError(
            f"a {type(value).__name__} cannot be read as an array: {one_line(error)[:80]}"
        ) from None


def _from_torch(tensor: Any) -> NDArray:
    found = tensor.dequantize() if getattr(tensor, "is_quantized", False) else tensor
    if str(found.layout) != "torch.strided":
        found = found.to_dense()
    if found.is_floating_point() and str(found.dtype) not in _NUMPY_FLOATS:
        found = found.float()
    return found.numpy(force=True)


_NUMPY_FLOATS = ("torch.float16", "torch.float32", "torch.float64")


def _known_type(array: NDArray) -> NDArray:
    # bfloat16 and the types of 8 bits come from the package ml_dtypes.
    if array.dtype.kind == "V" and array.dtype.names is None and "float" in array.dtype.name:
        return array.astype(np.float32)
    return array
