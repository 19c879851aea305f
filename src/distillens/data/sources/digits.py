"""Handwritten digits that come with scikit-learn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from distillens.data.sources.source import DataSource, LoadOptions, register_source, to_examples

if TYPE_CHECKING:
    from distillens.data.examples import Examples


@register_source("digits")
class Digits(DataSource):
    """scikit-learn's 1,797 handwritten digits, (N, 1, 8, 8) with grey values 0 to 255."""

    def load(self, options: LoadOptions) -> dict[str, Examples]:
        from sklearn.datasets import load_digits

        digits: Any = load_digits()
        # Stored as 0..16; spread over a byte so that every source of images has the same unit.
        images = np.round(np.asarray(digits["images"]) * (255 / 16)).astype(np.uint8)
        labels = np.asarray(digits["target"])
        return to_examples({"train": images}, {"train": labels}, {"train": "digits"}, None, options)
