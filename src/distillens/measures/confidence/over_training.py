"""A student's checkpoints against its final teacher: the audit over training, and at a loss switch.

Source: Nagarajan et al., NeurIPS 2023, arXiv 2301.12923: the deviation plot at checkpoints, x always
the final teacher. The intervals and the paired changes at a switch are ours. Shapes: N examples,
C classes.
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
from distillens.measures.confidence.outputs import Outputs
from distillens.measures.confidence.per_example import look_once
from distillens.measures.confidence.points import OutputKind
from distillens.measures.confidence.resampled import Drawn, drawn_share, drawn_slope, sure_share
from distillens.measures.statistics.bootstrap import Resampler
from distillens.measures.statistics.intervals import wilson_interval
from distillens.results.base import Estimate
from distillens.results.confidence import Switch, SwitchChange, TrajectoryPoint

Array = NDArray[np.float64]

_ALWAYS = (
    "slope_all", "slope_low", "slope_high", "underfit", "agreement", "accuracy", "net_gain",
)  # fmt: skip
_OF_MISLABELLED = ("mislabelled_right", "mislabelled_given")


@dataclass(eq=False)
class Watch:
    """Looks at checkpoints on the examples of one split, each by the same resamples.

    Parameters
    ----------
    split
        Its name.
    teacher_NC
        Logits of the final teacher.
    labels_N
        True classes (N,).
    given_N
        The classes that the networks were trained on, where some of them differ; else None.
    student_kind
        What checkpoints put out: "logits" or "probabilities".
    resamples, seed
        Of the bootstrap.

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
    _drawn: dict[int, dict[str, Drawn]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._teacher = Outputs("teacher", self.teacher_NC, "logits")
        self._labels_N = check_labels(self.labels_N, self._teacher.classes)
        self._resampler = Resampler(len(self._labels_N), self.resamples, self.seed)

    def look(self, epoch: int, student_NC: NDArray) -> TrajectoryPoint:
        """Return how a checkpoint stands to the final teacher, and remember it for `changes`.

        Raises
        ------
        MeasureError
            An output is not finite, or no probability where it should be.
        """
        student = Outputs("student", student_NC, self.student_kind)
        found = look_once(self._teacher, student, self._labels_N, {})
        teacher_right = found.teacher.top_N == self._labels_N
        student_right = found.student.top_N == self._labels_N
        everyone = np.ones(len(self._labels_N), dtype=bool)
        low_N = found.x_N < np.median(found.x_N)
        one = self._resampler
        parts = {"slope_all": everyone, "slope_low": low_N, "slope_high": ~low_N}
        drawn = {
            name: drawn_slope(found.x_N, found.y_N, part_N, one) for name, part_N in parts.items()
        }
        drawn["underfit"] = self._share(low_N, found.y_N < found.x_N)
        drawn["agreement"] = self._share(everyone, found.teacher.top_N == found.student.top_N)
        drawn["accuracy"] = self._share(everyone, student_right)
        right = self._share(everyone, teacher_right)
        drawn["net_gain"] = Drawn(
            100 * (drawn["accuracy"].value - right.value),
            100 * (drawn["accuracy"].drawn_R - right.drawn_R),
        )
        examples = len(self._labels_N)
        wrong_N = None if self.given_N is None else self.given_N != self._labels_N
        told: dict[str, Estimate] = {}
        if wrong_N is not None and wrong_N.any():
            said_N = found.student.top_N == self.given_N
            for name, which_N in zip(_OF_MISLABELLED, (student_right, said_N), strict=True):
                drawn[name] = self._share(wrong_N, which_N)
                told[name] = sure_share(drawn[name], int(wrong_N.sum()), one)
        self._drawn[epoch] = drawn
        gained = int(np.count_nonzero(student_right & ~teacher_right))
        lost = int(np.count_nonzero(teacher_right & ~student_right))
        slopes = {name: drawn[name].estimate(one) for name in _ALWAYS[:3]}
        shares = {
            name: Estimate(drawn[name].value, wilson_interval(drawn[name].value, examples))
            for name in ("agreement", "accuracy")
        }
        return TrajectoryPoint(
            epoch=epoch,
            split=self.split,
            **slopes,
            **shares,
            underfit=sure_share(drawn["underfit"], int(low_N.sum()), one)
            if low_N.any()
            else Estimate(float("nan")),
            net_gain=net_gain(gained, lost, examples),
            mislabelled_right=told.get("mislabelled_right"),
            mislabelled_given=told.get("mislabelled_given"),
        )

    def changes(self, switch: Switch) -> tuple[SwitchChange, ...]:
        """Return what each quantity did at a switch, from the checkpoints that were looked at.

        Empty where no checkpoint lies before the switch or none after it.
        """
        before = [epoch for epoch in self._drawn if epoch <= switch.begins]
        after = [epoch for epoch in self._drawn if epoch > switch.begins and epoch >= switch.ends]
        if not before or not after:
            return ()
        at = self._drawn[max(before)]
        soon, last = self._drawn[min(after)], self._drawn[max(after)]
        return tuple(self._change(name, at, soon, last) for name in at)

    def _change(
        self,
        name: str,
        at: Mapping[str, Drawn],
        soon: Mapping[str, Drawn],
        last: Mapping[str, Drawn],
    ) -> SwitchChange:
        change = last[name].minus(at[name], self._resampler)
        direction: Literal["rose", "fell", "no sure change"] = "no sure change"
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

    def _share(self, of_N: NDArray[np.bool_], which_N: NDArray[np.bool_]) -> Drawn:
        if not of_N.any():
            return Drawn(float("nan"), np.full(self.resamples, np.nan))
        return drawn_share(of_N, which_N, self._resampler)
