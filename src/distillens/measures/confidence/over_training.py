"""Confidence of a student at its checkpoints, compared with its final teacher.

Source: Nagarajan et al., NeurIPS 2023, arXiv 2301.12923: the deviation plot at checkpoints, x always
that of the final teacher. The intervals and the paired changes at a switch are ours. Shapes: N
examples, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from distillens.measures.complexity.targets import check_labels
from distillens.measures.confidence.departures import net_gain
from distillens.measures.confidence.outputs import OutputKind, Outputs
from distillens.measures.confidence.per_example_statistics import per_example_statistics
from distillens.measures.statistics.bootstrap import (
    Resampled,
    resampled_share,
    resampled_slope,
    share_estimate,
    shared_resampler,
)
from distillens.measures.statistics.intervals import observed_share
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
        self._given_N = self._labels_N if self.given_N is None else self.given_N
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
        one, student_top_N = self._resampler, found.student.top_N
        everyone = np.ones(len(self._labels_N), dtype=bool)
        low_N = found.x_N < np.median(found.x_N)
        right_N = student_top_N == self._labels_N
        agrees_N = found.teacher.top_N == student_top_N
        numbers = {
            f"slope_{part}": resampled_slope(found.x_N, found.y_N, part_N, one)
            for part, part_N in (("all", everyone), ("low", low_N), ("high", ~low_N))
        }
        estimates = {name: number.estimate(one) for name, number in numbers.items()}

        def share(name: str, of_N: NDArray, which_N: NDArray) -> None:
            numbers[name] = resampled_share(of_N, which_N, one)
            estimates[name] = share_estimate(numbers[name], int(of_N.sum()), one)

        share("underfit", low_N, found.y_N < found.x_N)
        share("agreement", everyone, agrees_N)
        share("accuracy", everyone, right_N)
        teacher = resampled_share(everyone, found.teacher.top_N == self._labels_N, one)
        numbers["net_gain"] = Resampled(
            100 * (numbers["accuracy"].value - teacher.value),
            100 * (numbers["accuracy"].values_R - teacher.values_R),
        )
        wrong_N = self._given_N != self._labels_N
        if wrong_N.any():
            share("mislabelled_right", wrong_N, right_N)
            share("mislabelled_given", wrong_N, student_top_N == self._given_N)
        self._measured[epoch] = numbers
        _, gained, lost, _ = np.bincount(found.who_is_right(), minlength=4).tolist()
        estimates |= {
            "agreement": observed_share(agrees_N),
            "accuracy": observed_share(right_N),
            "net_gain": net_gain(gained, lost, len(everyone)),
        }
        absent = dict.fromkeys(("mislabelled_right", "mislabelled_given"))
        return TrajectoryPoint(epoch, self.split, **{**absent, **estimates})

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
        at, soon, last = (self._measured[one] for one in (max(before), min(after), max(after)))
        return tuple(self._change(name, at[name], soon[name], last[name]) for name in at)

    def _change(self, name: str, at: Resampled, soon: Resampled, last: Resampled) -> SwitchChange:
        change = last.minus(at, self._resampler)
        direction: Literal["rose", "fell", "no clear change"] = "no clear change"
        if change.interval is not None and change.interval.low > 0:
            direction = "rose"
        elif change.interval is not None and change.interval.high < 0:
            direction = "fell"
        soon_change = soon.minus(at, self._resampler)
        return SwitchChange(self.split, name, at.value, soon_change, change, direction)
