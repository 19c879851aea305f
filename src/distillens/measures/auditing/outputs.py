"""The outputs of one network, checked and read a chunk at a time.

Shapes: N examples, C classes, B examples of a chunk. float32 stays float32 within a chunk, whose
rows are short; sums over examples are float64.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from distillens.errors import MeasureError
from distillens.measures.confidence import (
    CLIP,
    OutputKind,
    phi_from_logits,
    phi_from_probabilities,
    two_or_more,
)

SUM_TOLERANCE = 1e-3
"""How far a row of probabilities may be from a sum of one: float16 and rounded decimals need it."""

_RANGE_TOLERANCE = 1e-6
_LOOKED_AT = 4096
_TINY_REST = 1e-30


@dataclass(frozen=True, eq=False)
class Distribution:
    """Probabilities (B, C) of a chunk with their logarithms, and the outputs they came from."""

    outputs_BC: NDArray
    p_BC: NDArray
    log_p_BC: NDArray
    kind: OutputKind

    def phi(self, classes_B: NDArray) -> tuple[NDArray, NDArray]:
        """Return φ(p[k]) in float64, and where p[k] had to be clipped."""
        rows = np.arange(len(classes_B))
        if self.kind == "probabilities":
            return phi_from_probabilities(self.p_BC[rows, classes_B], CLIP)
        own_B = self.p_BC[rows, classes_B].copy()
        self.p_BC[rows, classes_B] = 0
        rest_B = self.p_BC.sum(axis=1)
        self.p_BC[rows, classes_B] = own_B
        # Where the rest underflows, it is summed again from the logits in float64.
        lost_B = rest_B < _TINY_REST
        rest_B[lost_B] = 1
        phi_B = self.log_p_BC[rows, classes_B].astype(np.float64) - np.log(rest_B, dtype=np.float64)
        if lost_B.any():
            phi_B[lost_B] = phi_from_logits(self.outputs_BC[lost_B], classes_B[lost_B])
        return phi_B, np.zeros(len(phi_B), dtype=bool)


class Outputs:
    """A role's outputs (N, C), or (N, 1) for one output that speaks of class 1.

    Parameters
    ----------
    role
        For messages: "teacher", "student", …
    values
        The array; memory maps are read in chunks.
    kind
        "logits" or "probabilities" as stated, or None to detect: rows within [0, 1] that sum to one
        are probabilities, numbers outside [0, 1] are logits, anything else has to be stated.

    Raises
    ------
    MeasureError
        The shape or type is wrong, or the kind cannot be told.
    """

    def __init__(self, role: str, values: NDArray, kind: OutputKind | None) -> None:
        self.role, self.values = role, values
        if values.ndim != 2 or values.shape[1] == 0 or values.dtype.kind not in "fiu":
            raise MeasureError(
                f"the {role}'s outputs have shape {values.shape} and type {values.dtype}; "
                "give numbers, shape (N, C), one column a class"
            )
        if len(values) == 0:
            raise MeasureError(f"the {role}'s outputs hold no examples; an audit needs some")
        self.type = np.float32 if values.dtype in (np.float16, np.float32) else np.float64
        self.notes: list[str] = []
        self.how = "stated"
        looks, why = self._look()
        if kind is None:
            if looks is None:
                raise MeasureError(
                    f"the {role}'s outputs may be logits or probabilities: {why}; "
                    "say which with kind (--kind logits or --kind probabilities)"
                )
            self.how = f"detected: {why}"
        elif kind == "logits" and looks == "probabilities":
            self.notes.append(
                f"the {role}'s outputs were stated to be logits, but {why}, as probabilities do"
            )
        self.kind: OutputKind = kind or looks or "logits"

    @property
    def classes(self) -> int:
        """Number of classes; one output means two."""
        return max(2, self.values.shape[1])

    def _look(self) -> tuple[OutputKind | None, str]:
        """Say what the first rows look like, and why."""
        head_BC = np.asarray(self.values[:_LOOKED_AT], dtype=self.type)
        self._check_finite(head_BC, 0)
        low, high = float(head_BC.min()), float(head_BC.max())
        rows = f"first {len(head_BC):,} rows" if len(self.values) > len(head_BC) else "rows"
        if low < -_RANGE_TOLERANCE or high > 1 + _RANGE_TOLERANCE:
            return "logits", f"the {rows} go from {low:.4g} to {high:.4g}"
        if head_BC.shape[1] == 1:
            return None, "a single output within [0, 1]"
        off = float(np.abs(head_BC.sum(axis=1) - 1).max())
        if off <= SUM_TOLERANCE:
            return "probabilities", f"the {rows} lie within [0, 1] and sum to one"
        return None, f"the {rows} lie within [0, 1], but a sum differs from one by {off:.3g}"

    def read(self, chunk: slice) -> Distribution:
        """Read a chunk as probabilities, checked row by row."""
        raw_BC = np.asarray(self.values[chunk], dtype=self.type)
        self._check_finite(raw_BC, chunk.start)
        if self.kind == "logits":
            z_BC = two_or_more(cast(NDArray[np.float64], raw_BC), "logits")
            log_p_BC = z_BC - z_BC.max(axis=1, keepdims=True)
            p_BC = np.exp(log_p_BC)
            total_B1 = p_BC.sum(axis=1, keepdims=True)
            p_BC /= total_B1
            log_p_BC -= np.log(total_B1)
            return Distribution(z_BC, p_BC, log_p_BC, "logits")
        p_BC = self._checked_probabilities(raw_BC, chunk.start)
        return Distribution(raw_BC, p_BC, np.log(np.maximum(p_BC, CLIP)), "probabilities")

    def release(self) -> None:
        """Hand the pages read so far back, so that a mapped file does not count as our memory."""
        base = self.values
        while isinstance(base, np.ndarray):
            base = base.base
        # Dropping pages of a private, written map would lose what was written.
        writable = self.values.flags.writeable
        if isinstance(base, mmap.mmap) and not writable and hasattr(base, "madvise"):
            base.madvise(mmap.MADV_DONTNEED)

    def _check_finite(self, raw_BC: NDArray, start: int) -> None:
        # One NaN or infinity makes the sum of a row so; the rows are looked at only then.
        with np.errstate(over="ignore", invalid="ignore"):
            finite = np.isfinite(raw_BC.sum())
        if finite:
            return
        finite_B = np.isfinite(raw_BC).all(axis=1)
        if not finite_B.all():
            raise MeasureError(
                f"the {self.role}'s outputs are NaN or infinite at row "
                f"{start + int(np.argmin(finite_B))}; look at what made them"
            )

    def _checked_probabilities(self, raw_BC: NDArray, start: int) -> NDArray:
        low, high = float(raw_BC.min()), float(raw_BC.max())
        if low < -_RANGE_TOLERANCE or high > 1 + _RANGE_TOLERANCE:
            outside_B = ((raw_BC < -_RANGE_TOLERANCE) | (raw_BC > 1 + _RANGE_TOLERANCE)).any(axis=1)
            raise MeasureError(
                f"the {self.role}'s outputs are no probabilities ({self.how}): they go from "
                f"{low:.4g} to {high:.4g}, first at row {start + int(np.argmax(outside_B))}; "
                "if they are logits, say so with kind (--kind logits)"
            )
        p_BC = two_or_more(np.clip(raw_BC, 0, 1), "probabilities")
        total_B1 = p_BC.sum(axis=1, keepdims=True)
        off_B = np.abs(total_B1[:, 0] - 1)
        if off_B.max() > SUM_TOLERANCE:
            row = int(np.argmax(off_B > SUM_TOLERANCE))
            raise MeasureError(
                f"the {self.role}'s probabilities sum to {float(total_B1[row, 0]):.4g} at row "
                f"{start + row}; they must sum to one within {SUM_TOLERANCE:g}, so apply softmax "
                "or say --kind logits"
            )
        return p_BC / total_B1
