"""Confidence of a student at its checkpoints, compared with its final teacher.

Source: Nagarajan et al., NeurIPS 2023, arXiv 2301.12923: the deviation plot at checkpoints, x always
that of the final teacher. The intervals and the paired changes at a switch are ours. Shapes: N
examples, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from distillens.measures.complexity.targets import check_labels
from distillens.measures.confidence.departures import net_gain
from distillens.measures.confidence.outputs import OutputKind, Outputs
from distillens.measures.confidence.per_example_statistics import per_example_statistics
from distillens.measures.statistics.bootstrap import shared_resampler
from distillens.measures.statistics.intervals import observed_share
from distillens.measures.statistics.resampled import (
    Resampled,
    resampled_share,
    resampled_slope,
    share_estimate,
)
from distillens.results.base import Estimate
from distillens.results.confidence import Switch, SwitchChange, TrajectoryPoint

Array = NDArray[np.float64]


@dataclass(eq=False)
class CheckpointMeter:
    """Measures the checkpoints of a student on the examples of one split, by the same resamples.

    Parameters
    ----------
    split
        Name of the split.
    teacher_NC
        Logits of the final teacher.
    labels_N
        True classes (N,).
    given_N
        The classes that the networks were trained on, if some of them differ; otherwise None.
    student_kind
        Kind of the checkpoints' outputs: "logits" or "probabilities".
    resamples, seed
        Number of bootstrap resamples and their seed.

    Raises
    ------
    MeasureError
        Arrays do not fit each other.
    """

    split: str
    teacher_NC: NDArray
    labels_N: NDArray
    given_N: NDArray | None = None
    student_kind: OutputKind = "logits"
    resamples: int = 1000
    seed: int = 0
    _measured: dict[int, dict[str, Resampled]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._teacher = Outputs("teacher", self.teacher_NC, "logits")
        self._labels_N = check_labels(self.labels_N, self._teacher.classes)
        self._resampler = shared_resampler(len(self._labels_N), self.resamples, self.seed)

    def measure(self, epoch: int, student_NC: NDArray) -> TrajectoryPoint:
        """Return the numbers of a checkpoint, and keep their resamples for `changes`.

        Raises
        ------
        MeasureError
            An output is not finite, or no probability where it should be.
        """
        student = Outputs("student", student_NC, self.student_kind)
        found = per_example_statistics(self._teacher, student, self._labels_N, {})
        one, examples = self._resampler, len(self._labels_N)
        who_N = found.who_is_right()
        everyone = np.ones(examples, dtype=bool)
        low_N = found.x_N < np.median(found.x_N)
        teacher_right, student_right = np.isin(who_N, (0, 2)), np.isin(who_N, (0, 1))
        agrees_N = found.teacher.top_N == found.student.top_N
        numbers = {
            f"slope_{part}": resampled_slope(found.x_N, found.y_N, part_N, one)
            for part, part_N in (("all", everyone), ("low", low_N), ("high", ~low_N))
        }
        estimates = {name: number.estimate(one) for name, number in numbers.items()}
        numbers["underfit"] = resampled_share(low_N, found.y_N < found.x_N, one)
        numbers["agreement"] = resampled_share(everyone, agrees_N, one)
        numbers["accuracy"] = resampled_share(everyone, student_right, one)
        right = resampled_share(everyone, teacher_right, one)
        numbers["net_gain"] = Resampled(
            100 * (numbers["accuracy"].value - right.value),
            100 * (numbers["accuracy"].values_R - right.values_R),
        )
        estimates["underfit"] = share_estimate(numbers["underfit"], int(low_N.sum()), one)
        wrong_N = None if self.given_N is None else self.given_N != self._labels_N
        of_mislabelled: dict[str, Estimate | None] = dict.fromkeys(
            ("mislabelled_right", "mislabelled_given")
        )
        if wrong_N is not None and wrong_N.any():
            given_N = found.student.top_N == self.given_N
            for name, which_N in zip(of_mislabelled, (student_right, given_N), strict=True):
                numbers[name] = resampled_share(wrong_N, which_N, one)
                of_mislabelled[name] = share_estimate(numbers[name], int(wrong_N.sum()), one)
        self._measured[epoch] = numbers
        counts = np.bincount(who_N, minlength=4)
        return TrajectoryPoint(
            epoch=epoch,
            split=self.split,
            **estimates,
            agreement=observed_share(agrees_N),
            accuracy=observed_share(student_right),
            net_gain=net_gain(int(counts[1]), int(counts[2]), examples),
            mislabelled_right=of_mislabelled["mislabelled_right"],
            mislabelled_given=of_mislabelled["mislabelled_given"],
        )

    def changes(self, switch: Switch) -> tuple[SwitchChange, ...]:
        """Return the change of each quantity at a switch, from the checkpoints measured so far.

        Empty if no checkpoint lies before the switch or none after it.
        """
        before = [epoch for epoch in self._measured if epoch <= switch.begins]
        after = [
            epoch for epoch in self._measured if epoch > switch.begins and epoch >= switch.ends
        ]
        if not before or not after:
            return ()
        at = self._measured[max(before)]
        soon, last = self._measured[min(after)], self._measured[max(after)]
        return tuple(self._change(name, at, soon, last) for name in at)

    def _change(
        self,
        name: str,
        at: Mapping[str, Resampled],
        soon: Mapping[str, Resampled],
        last: Mapping[str, Resampled],
    ) -> SwitchChange:
        change = last[name].minus(at[name], self._resampler)
        direction: Literal["rose", "fell", "no clear change"] = "no clear change"
        interval = change.interval
        if interval is not None and not math.isnan(change.value):
            if interval.low > 0:
                direction = "rose"
            elif interval.high < 0:
                direction = "fell"
        return SwitchChange(
            split=self.split,
            quantity=name,
            before=at[name].value,
            soon=soon[name].minus(at[name], self._resampler),
            last=change,
            direction=direction,
        )
