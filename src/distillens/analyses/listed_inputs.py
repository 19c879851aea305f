"""The inputs of listed departures: small pictures or sentences that the report shows.

Shapes: M examples, (H, W, channels) pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distillens.analyses.finished import SPLITS, FinishedRun
from distillens.data import Examples
from distillens.data.tokens import decoded
from distillens.results.confidence import StudentAudit

LARGEST = 64
"""Longest side of a stored picture in pixels; larger pictures are reduced."""


def listed_inputs(run: FinishedRun, audits: Sequence[StudentAudit]) -> dict[str, NDArray]:
    """Return the inputs of the departures that are listed for the first seed of each supervision.

    Returns
    -------
    dict
        For each split ``<split>-rows`` (M,), and either ``<split>-pictures`` (M, H, W, channels) in
        0 … 255 or ``<split>-sentences`` (M,). Empty for inputs that are neither, such as vectors, and
        for language models, whose departures are tokens.
    """
    if run.context.task.every_position:
        return {}
    firsts: dict[str, StudentAudit] = {}
    for audit in audits:
        firsts.setdefault(audit.student, audit)
    found: dict[str, NDArray] = {}
    for split in SPLITS:
        examples = run.context.splits.train if split == "train" else run.context.splits.test
        listed = {
            one.row
            for audit in firsts.values()
            for part in audit.audit.splits
            if part.split == split
            for one in part.ledger.telling
        }
        rows = np.array(sorted(listed), dtype=np.int64)
        kind, inputs = _inputs(run, examples.take(rows)) if len(rows) else ("", None)
        if inputs is not None:
            found |= {f"{split}-rows": rows, f"{split}-{kind}": inputs}
    return found


def _inputs(run: FinishedRun, examples: Examples) -> tuple[str, NDArray | None]:
    if examples.vocabularies:
        tokens = examples.inputs.numpy()
        tokens_MT = tokens[:, 0] if tokens.ndim == 3 else tokens
        sentences = decoded(run.context.splits.tokenizers[0], tokens_MT)
        return "sentences", np.array(sentences, dtype=np.str_)
    if examples.inputs.ndim != 4 or examples.inputs.shape[1] not in (1, 3):
        return "", None
    pixels_MHWC = np.moveaxis(examples.inputs.numpy(), 1, -1)
    return "pictures", np.stack([_small(one) for one in pixels_MHWC])


def _small(pixels_HWC: NDArray) -> NDArray[np.uint8]:
    """Return a picture as bytes; numbers that are no bytes are stretched from lowest to highest."""
    if pixels_HWC.dtype != np.uint8:
        values = pixels_HWC.astype(np.float64)
        low, high = np.nanmin(values), np.nanmax(values)
        scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
        pixels_HWC = np.nan_to_num(255 * scaled).round().astype(np.uint8)
    if max(pixels_HWC.shape[:2]) <= LARGEST:
        return pixels_HWC
    single = pixels_HWC.shape[2] == 1
    image = Image.fromarray(pixels_HWC[..., 0] if single else pixels_HWC)
    image.thumbnail((LARGEST, LARGEST), Image.Resampling.BOX)
    reduced = np.asarray(image)
    return reduced[..., None] if single else reduced
