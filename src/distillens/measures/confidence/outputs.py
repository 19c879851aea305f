"""The outputs of one network, checked and read a chunk at a time, in float64.

Shapes: N examples, C classes, B examples of a chunk.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from distillens.errors import MeasureError
from distillens.measures.confidence.columns import SLACK
from distillens.measures.confidence.log_odds import phi_from_logits

Array = NDArray[np.float64]
OutputKind = Literal["logits", "probabilities"]

SUM_TOLERANCE = 1e-3
"""Accepted difference of the sum of a row of probabilities from one, because of rounding."""

_RANGE_TOLERANCE = 1e-6
_EXACT = 1e-6
"""Sums nearer to one than this are those of unrounded float32 probabilities."""

_LOOKED_AT = 4096
_TINY_REST = 1e-290


@dataclass(frozen=True, eq=False)
class Distribution:
    """Probabilities (B, C) of a chunk with their logarithms."""

    p_BC: Array
    log_p_BC: Array
    kind: OutputKind

    def phi(self, classes_B: NDArray) -> Array:
        """Return φ(p[k]) = log p[k] − log Σ_{j≠k} p[j]; infinite where p[k] is 0 or 1."""
        rows = np.arange(len(classes_B))
        own_B = self.p_BC[rows, classes_B]
        self.p_BC[rows, classes_B] = 0
        rest_B = self.p_BC.sum(axis=1)
        self.p_BC[rows, classes_B] = own_B
        with np.errstate(divide="ignore"):
            phi_B = self.log_p_BC[rows, classes_B] - np.log(rest_B)
        # Where the rest underflows, it is summed again from the logits.
        lost_B = rest_B < _TINY_REST
        if self.kind == "logits" and lost_B.any():
            phi_B[lost_B] = phi_from_logits(self.log_p_BC[lost_B], classes_B[lost_B])
        return phi_B


class Outputs:
    """A role's outputs (N, C), or (N, 1) for one output that speaks of class 1.

    Parameters
    ----------
    role
        For messages: "teacher", "student", …
    values
        The array; memory maps are read in chunks. Further axes of length 1 are dropped, and (N,)
        decimals are one output.
    kind
        "logits" or "probabilities", or None to detect it: rows within [0, 1] that sum to one
        are probabilities, rows that sum to 100 are percentages, other numbers outside [0, 1] are
        logits, and anything else has to be stated.
    tolerance
        Accepted difference of the sum of a row of probabilities from one.
    rows_N
        The rows to read, in this order; None for all.
    order_C
        The order of the columns; None for that of the array.

    Raises
    ------
    MeasureError
        The shape or type is wrong, or the kind cannot be detected.
    """

    def __init__(
        self,
        role: str,
        values: NDArray,
        kind: OutputKind | None,
        *,
        tolerance: float = SUM_TOLERANCE,
        rows_N: NDArray[np.integer] | None = None,
        order_C: NDArray[np.integer] | None = None,
    ) -> None:
        if not 0 <= tolerance < 0.5:
            raise MeasureError(f"the tolerance is {tolerance:g}; give a number from 0 to 0.5")
        self.role, self.values = role, as_matrix(role, values)
        self.tolerance, self._rows_N, self._order_C = tolerance, rows_N, order_C
        if len(self) == 0:
            raise MeasureError(f"the {role}'s outputs hold no examples; an audit needs some")
        self._off = 0.0
        self._total = 1.0
        self._notes: list[str] = []
        self.how = "stated"
        looks, why = self._look(kind)
        if kind is None:
            if looks is None:
                raise MeasureError(
                    f"the {role}'s outputs may be logits or probabilities: {why}; "
                    "name it with kind (--kind logits or --kind probabilities)"
                )
            self.how = f"detected: {why}"
        elif kind == "logits" and looks == "probabilities":
            self._notes.append(
                f"the {role}'s outputs were stated to be logits, but {why}, as probabilities do"
            )
        self.kind: OutputKind = kind or looks or "logits"

    def __len__(self) -> int:
        return len(self.values if self._rows_N is None else self._rows_N)

    @property
    def classes(self) -> int:
        """Number of classes; one output means two."""
        return max(2, self.values.shape[1])

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on the conversion of the outputs read so far."""
        if self._total != 1:
            return (*self._notes, f"the {self.role}'s percentages were divided by 100")
        if self._off <= _EXACT:
            return tuple(self._notes)
        return (
            *self._notes,
            f"the {self.role}'s probabilities sum to one only within {self._off:.2g}; "
            "each row was divided by its sum",
        )

    def _look(self, kind: OutputKind | None) -> tuple[OutputKind | None, str]:
        """Return the kind that the first rows have, None if it is not clear, and the reason."""
        head_BC = self._block(slice(0, min(_LOOKED_AT, len(self))))
        self._check_finite(head_BC, 0)
        low, high = float(head_BC.min()), float(head_BC.max())
        rows = f"first {len(head_BC):,} rows" if len(self) > len(head_BC) else "rows"
        single = head_BC.shape[1] == 1
        if not single and kind != "logits" and low >= 0 and high > 1 + _RANGE_TOLERANCE:
            off = np.abs(head_BC.sum(axis=1) - 100).max()
            if off <= 100 * (self.tolerance + SLACK):
                self._total = 100.0
                return "probabilities", f"the {rows} are percentages, which sum to 100"
        if low < -_RANGE_TOLERANCE or high > 1 + _RANGE_TOLERANCE:
            return "logits", f"the {rows} go from {low:.4g} to {high:.4g}"
        if single:
            return None, "a single output within [0, 1]"
        off = float(np.abs(head_BC.sum(axis=1) - 1).max())
        if off <= self.tolerance + SLACK:
            return "probabilities", f"the {rows} lie within [0, 1] and sum to one"
        return None, (
            f"the {rows} lie within [0, 1], but a sum differs from one by {off:.3g}, which --tolerance "
            f"{_rounded_up(off)} would accept as rounding"
        )

    def read(self, chunk: slice) -> Distribution:
        """Read a chunk as probabilities, checked row by row."""
        raw_BC = self._block(chunk)
        single = raw_BC.shape[1] == 1
        if self.kind == "logits":
            log_p_BC = raw_BC.astype(np.float64)
            if single:
                log_p_BC = np.concatenate([np.zeros_like(log_p_BC), log_p_BC], axis=1)
            with np.errstate(invalid="ignore"):
                log_p_BC -= log_p_BC.max(axis=1, keepdims=True)
            p_BC = np.exp(log_p_BC)
            total_B1 = p_BC.sum(axis=1, keepdims=True)
            # NaN, +∞ and a row of −∞ alone leave no finite sum.
            if not np.isfinite(total_B1).all():
                self._check_finite(raw_BC, chunk.start)
            p_BC /= total_B1
            log_p_BC -= np.log(total_B1)
            return Distribution(p_BC, log_p_BC, "logits")
        self._check_finite(raw_BC, chunk.start)
        self._check_range(raw_BC, chunk.start)
        p_BC = np.clip(raw_BC.astype(np.float64), 0, self._total)
        if single:
            p_BC = np.concatenate([1 - p_BC, p_BC], axis=1)
        self._check_sums(p_BC, chunk.start)
        with np.errstate(divide="ignore"):
            return Distribution(p_BC, np.log(p_BC), "probabilities")

    def release(self) -> None:
        """Release the pages read so far, so that a mapped file does not count as used memory."""
        base = self.values
        while isinstance(base, np.ndarray):
            base = base.base
        # Dropping pages of a private, written map would lose what was written.
        writable = self.values.flags.writeable
        if isinstance(base, mmap.mmap) and not writable and hasattr(base, "madvise"):
            base.madvise(mmap.MADV_DONTNEED)

    def _block(self, chunk: slice) -> NDArray:
        rows = chunk if self._rows_N is None else self._rows_N[chunk]
        block_BC = self.values[rows]
        return block_BC if self._order_C is None else block_BC[:, self._order_C]

    def _row(self, place: int) -> int:
        return place if self._rows_N is None else int(self._rows_N[place])

    def _check_finite(self, raw_BC: NDArray, start: int) -> None:
        # A NaN or infinity makes the sum NaN or infinite; the rows are searched only then.
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(raw_BC.sum(dtype=np.float64 if raw_BC.dtype.kind == "f" else None)):
                return
        # A logit of −∞ masks a class, which then has the probability 0.
        bad_B = np.isnan(raw_BC).any(axis=1) | np.isposinf(raw_BC).any(axis=1)
        bad_B |= np.isneginf(raw_BC).all(axis=1)
        if bad_B.any():
            raise MeasureError(
                f"the {self.role}'s outputs are NaN or infinite at row "
                f"{self._row(start + int(np.argmax(bad_B)))}; look at what made them"
            )

    def _check_range(self, raw_BC: NDArray, start: int) -> None:
        low, high = float(raw_BC.min()), float(raw_BC.max())
        top = self._total + _RANGE_TOLERANCE
        if low < -_RANGE_TOLERANCE or high > top:
            outside_B = ((raw_BC < -_RANGE_TOLERANCE) | (raw_BC > top)).any(axis=1)
            raise MeasureError(
                f"the {self.role}'s outputs are no probabilities ({self.how}): they go from "
                f"{low:.4g} to {high:.4g}, first at row "
                f"{self._row(start + int(np.argmax(outside_B)))}; "
                "if they are logits, set kind (--kind logits)"
            )

    def _check_sums(self, p_BC: Array, start: int) -> None:
        """Divide rows by their sums, which must be one within the tolerance."""
        total_B1 = p_BC.sum(axis=1, keepdims=True)
        off_B = np.abs(total_B1[:, 0] / self._total - 1)
        self._off = max(self._off, float(off_B.max()))
        if self._off > self.tolerance + SLACK:
            place = int(np.argmax(off_B > self.tolerance + SLACK))
            raise MeasureError(
                f"the {self.role}'s probabilities sum to {float(total_B1[place, 0]):.4g} at row "
                f"{self._row(start + place)}; they must sum to one within {self.tolerance:g}: if they "
                f"were rounded, accept up to {self._off:.2g} with --tolerance "
                f"{_rounded_up(self._off)}, otherwise apply softmax or set --kind logits"
            )
        p_BC /= total_B1


def as_matrix(role: str, values: NDArray) -> NDArray:
    """Return outputs as (N, C).

    Raises
    ------
    MeasureError
        There is another axis of more than one value, or the type is not a number.
    """
    head = values[:_LOOKED_AT]
    if values.ndim == 1 and values.dtype.kind == "f" and (head != np.rint(head)).any():
        return values[:, None]
    if values.ndim > 2 and values.size and sum(size > 1 for size in values.shape[1:]) <= 1:
        values = values.reshape(len(values), -1)
    if values.ndim != 2 or values.shape[1] == 0 or values.dtype.kind not in "fiu":
        classes = values.ndim == 1 and values.dtype.kind in "fiuOU"
        raise MeasureError(
            f"the {role}'s outputs have shape {values.shape} and type {values.dtype}; "
            f"{'predicted classes are not enough: ' if classes else ''}give numbers, shape (N, C), "
            "one column a class"
        )
    return values


def _rounded_up(off: float) -> str:
    """Write a number with two digits, not below it."""
    return f"{off * 1.05 + 1e-12:.2g}"
