"""Calibration of a classifier from the confidence in its top class.

Binning follows ``sklearn.calibration.calibration_curve`` (a confidence at an edge falls below it),
which the tests compare with. That function leaves out the counts that the ECE needs; scikit-learn's
Brier score and log-loss want all N × C probabilities in memory. Sources: Guo et al., *On
calibration of modern neural networks*, 2017 (ECE); Nixon et al., *Measuring calibration in deep
learning*, 2019 (bins of equal size); Bröcker and Smith, *Increasing the reliability of reliability
diagrams*, 2007 (what a calibrated classifier would show). Shapes: N examples, K bins, D draws.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from distillens.measures.confidence.per_example_statistics import Predictions
from distillens.measures.statistics.bootstrap import Resampler
from distillens.measures.statistics.intervals import LEVEL, observed_share, wilson_interval
from distillens.results.base import Estimate, Interval
from distillens.results.confidence import Calibration, ReliabilityBin

Array = NDArray[np.float64]

BINS = 15
_DRAWS = 1000


def measure_calibration(
    who: Literal["teacher", "student"],
    predictions: Predictions,
    labels_N: NDArray,
    resampler: Resampler,
    given_N: NDArray | None = None,
) -> Calibration:
    """Return accuracy and calibration of one network.

    ``given_N`` are the labels that the networks were trained on, if some differ from ``labels_N``.
    """
    right_N = predictions.top_N == labels_N
    even_edges = np.linspace(0, 1, BINS + 1)
    rng = np.random.default_rng(resampler.seed)
    even = _Bins(predictions.confidence_N, right_N, even_edges)
    quantiles = np.quantile(predictions.confidence_N, np.linspace(0, 1, BINS + 1))
    # Confidences that tie fall into one bin, whatever the order of the examples.
    adaptive = _Bins(predictions.confidence_N, right_N, np.unique(quantiles))
    return Calibration(
        who=who,
        accuracy=observed_share(right_N),
        accuracy_on_given_labels=None
        if given_N is None
        else observed_share(predictions.top_N == given_N),
        confidence=float(predictions.confidence_N.mean()),
        ece=even.error(),
        ece_if_calibrated=even.if_calibrated(rng),
        adaptive_ece=adaptive.error(),
        adaptive_ece_if_calibrated=adaptive.if_calibrated(rng),
        brier=resampler.mean(predictions.brier_N),
        nll=resampler.mean(predictions.nll_N),
        infinite_nll=resampler.without_infinite(predictions.nll_N),
        reliability=even.reliability(),
    )


class _Bins:
    """Counts, right answers and summed confidence of each bin that holds an example."""

    def __init__(self, confidence_N: Array, right_N: NDArray, edges: Array) -> None:
        if len(edges) == 1:
            edges = np.repeat(edges, 2)
        bin_N, bins = np.searchsorted(edges[1:-1], confidence_N), len(edges) - 1
        count_K = np.bincount(bin_N, minlength=bins)
        kept = count_K > 0
        self.count_K, self.low_K, self.high_K = count_K[kept], edges[:-1][kept], edges[1:][kept]
        self.right_K, self.confidence_K = (
            np.bincount(bin_N, weights=each_N, minlength=bins)[kept]
            for each_N in (right_N, confidence_N)
        )

    def error(self) -> float:
        """Return Σ share · |accuracy − confidence|."""
        return float(np.abs(self.right_K - self.confidence_K).sum() / self.count_K.sum())

    def if_calibrated(self, rng: np.random.Generator) -> Interval:
        """Return the central range of the error if each confidence is the probability of being right.

        Right answers of a bin are sampled as binomial with its mean confidence, which spreads them a
        little more than confidences that differ within the bin would.
        """
        p_K = np.clip(self.confidence_K / self.count_K, 0, 1)
        sampled_DK = rng.binomial(self.count_K, p_K, size=(_DRAWS, len(p_K)))
        errors_D = np.abs(sampled_DK - self.confidence_K).sum(axis=1) / self.count_K.sum()
        low, high = np.quantile(errors_D, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Interval(
            float(low), float(high), LEVEL, f"{_DRAWS} draws of a calibrated classifier"
        )

    def reliability(self) -> tuple[ReliabilityBin, ...]:
        """Return the reliability curve."""
        found = []
        for low, high, count, right, total in zip(
            self.low_K, self.high_K, self.count_K, self.right_K, self.confidence_K, strict=True
        ):
            share = float(right / count)
            accuracy = Estimate(share, wilson_interval(share, int(count)))
            found.append(
                ReliabilityBin(float(low), float(high), int(count), float(total / count), accuracy)
            )
        return tuple(found)
