"""Images of a split as one array: decoded, and brought to another size."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np

from distillens.data.sources.source import LoadOptions, to_examples
from distillens.errors import DataError, one_line

if TYPE_CHECKING:
    from distillens.data.examples import Examples


def decode_all(
    count: int,
    opened: Callable[[int], AbstractContextManager[Any]],
    name: Callable[[int], str],
    side: int | None,
    *,
    exif: bool,
) -> tuple[np.ndarray, bool]:
    """Decode images in threads.

    Parameters
    ----------
    count
        Number of images.
    opened
        Opens the Pillow image of a number.
    name
        Function from the number of an image to its name in errors.
    side
        Height and width in pixels to which images are brought; None leaves them as they are.
    exif
        Whether an EXIF orientation is applied.

    Returns
    -------
    (N, 3, height, width) bytes, and whether all images are stored as grey values.

    Raises
    ------
    DataError
        There is no image, one is damaged or has more than 8 bits a channel, two differ in size, or
        the memory does not hold them.
    """
    if not count:
        raise DataError(f"{name(0).partition(': ')[0]}: no examples; at least one is needed")

    def decode(number: int) -> tuple[np.ndarray, bool]:
        from PIL import ImageOps, UnidentifiedImageError

        try:
            with opened(number) as image:
                if image.mode.startswith(("I", "F")):
                    raise DataError(
                        f"{name(number)} has more than 8 bits a channel (mode {image.mode}); convert "
                        "it to 8"
                    )
                turned = ImageOps.exif_transpose(image) if exif else image
                pixels, is_grey = np.asarray(turned.convert("RGB")), image.mode in ("1", "L", "LA")
        except DataError:
            raise
        # Damage shows as many kinds of errors, SyntaxError and decompression bombs among them.
        except Exception as error:
            # The text of an unidentified image names a buffer in memory.
            why = "" if isinstance(error, UnidentifiedImageError) else f": {one_line(error)}"
            raise DataError(f"{name(number)} is no readable image{why}; fetch it again") from None
        return (pixels if side is None else resize_images(pixels.T, side).T), is_grey

    height, width, _ = decode(0)[0].shape
    # One array, filled by the threads: a list of images and its stack would need twice the memory.
    try:
        images = np.empty((count, 3, height, width), dtype=np.uint8)
    except MemoryError as error:
        raise DataError(
            f"no room for the images: {one_line(error)}; lower data.image_size"
        ) from None

    def fill(number: int) -> bool:
        pixels, is_grey = decode(number)
        if pixels.shape[:2] != (height, width):
            raise DataError(
                f"images differ in size: {name(0)} is {width}x{height}, {name(number)} "
                f"{pixels.shape[1]}x{pixels.shape[0]}; set data.image_size to bring them to one"
            )
        images[number] = pixels.transpose(2, 0, 1)
        return is_grey

    with ThreadPoolExecutor() as pool:
        try:
            return images, all(list(pool.map(fill, range(count))))
        except DataError:
            pool.shutdown(cancel_futures=True)
            raise


def image_examples(
    decoded: dict[str, tuple[np.ndarray, bool]],
    labels: dict[str, np.ndarray],
    where: str,
    classes: Any,
    options: LoadOptions,
) -> dict[str, Examples]:
    """Return the examples of decoded images: of one channel if all splits are grey, else of three."""
    channels = 1 if all(all_grey for _, all_grey in decoded.values()) else 3
    inputs = {split: images[:, :channels] for split, (images, _) in decoded.items()}
    return to_examples(inputs, labels, where, classes, options)


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
