"""Images of another size: the largest centred square, averaged over areas."""

from __future__ import annotations

import numpy as np

from distillens.errors import DataError

CHUNK = 4096
"""Images that are resized at once, which bounds the memory for sums of 64 bits."""


def resize_images(images: np.ndarray, side: int) -> np.ndarray:
    """Return images as squares of another size.

    Of each image the largest centred square is taken. Each pixel of the result is the mean of the
    square over the area that the pixel covers, so a reduction by a whole factor is the mean of blocks
    of pixels, and an enlargement repeats pixels. Bytes are summed as integers and rounded half up,
    so the result has the same bits on every machine.

    Parameters
    ----------
    images
        (..., height, width), uint8 or floating point.
    side
        Height and width of the result, in pixels.

    Returns
    -------
    (..., side, side) array of the same type.

    Raises
    ------
    DataError
        The images have no height and width, or they are neither uint8 nor floating point.

    Examples
    --------
    >>> import numpy as np
    >>> resize_images(np.array([[0, 1, 10, 10], [2, 3, 10, 10]], dtype=np.uint8), 1)
    array([[6]], dtype=uint8)
    """
    if images.ndim < 2 or not all(images.shape[-2:]):
        raise DataError(f"image_size resizes images, these inputs have shape {images.shape}")
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise DataError(f"images to resize are uint8 or floating point, got {images.dtype}")
    height, width = images.shape[-2:]
    square = min(height, width)
    top, left = (height - square) // 2, (width - square) // 2
    images = images[..., top : top + square, left : left + square]
    if square == side:
        return images
    if images.ndim == 2:
        return _averaged(images, side)
    result = np.empty((*images.shape[:-2], side, side), images.dtype)
    for start in range(0, len(images), CHUNK):
        result[start : start + CHUNK] = _averaged(images[start : start + CHUNK], side)
    return result


def _averaged(images: np.ndarray, side: int) -> np.ndarray:
    square = images.shape[-1]
    exact = images.dtype == np.uint8
    sums = images.astype(np.int64 if exact else np.float64)
    for axis in (-2, -1):
        sums = _summed(sums, side, axis)
    area = square * square
    if exact:
        return ((2 * sums + area) // (2 * area)).astype(np.uint8)
    return (sums / area).astype(images.dtype)


def _summed(values: np.ndarray, side: int, axis: int) -> np.ndarray:
    """Return the integrals of an axis over ``side`` intervals; one value is ``side`` units long."""
    values = np.moveaxis(values, axis, -1)
    length = values.shape[-1]
    whole, part = np.divmod(np.arange(side + 1) * length, side)
    before = np.zeros((*values.shape[:-1], length + 1), values.dtype)
    np.cumsum(values, -1, out=before[..., 1:])
    # The integral up to a boundary: of the values that lie before it, and of part of the next one.
    integral = side * before[..., whole] + part * values[..., np.minimum(whole, length - 1)]
    return np.moveaxis(np.diff(integral, axis=-1), -1, axis)
