"""What a student is asked to fit, as one protocol; the training loop knows nothing else of it."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from distillens.data.batches import Batch


@runtime_checkable
class Supervision(Protocol):
    """What the student fits at a step.

    The loop calls ``advance(batch, step)`` once a global step, then ``loss`` for each of its
    micro-batches. Logits have shape (B, C), or (B, T, C) with ``batch.mask`` (B, T).
    """

    def advance(self, batch: Batch, step: int) -> None:
        """Prepare for a step, for example follow the teacher to its next checkpoint."""
        ...

    def loss(self, logits: Tensor, batch: Batch, step: int) -> Tensor:
        """Return the scalar loss, a mean over examples (and positions that count)."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs: tensors, numbers and strings."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state that ``state_dict`` returned."""
        ...


@runtime_checkable
class Teacher(Protocol):
    """What gives the logits that a student learns from, at a step."""

    def advance(self, batch: Batch, step: int) -> None:
        """Prepare for a step."""
        ...

    def logits(self, batch: Batch) -> Tensor:
        """Return (B, C) or (B, T, C) logits, without a gradient."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs; empty for a teacher that does not learn."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state that ``state_dict`` returned."""
        ...


def separate_from(part: object, student: nn.Module) -> bool:
    """Let a supervision or a teacher part with tensors that training the student would change.

    The training loop calls this once before the first step. It calls the optional method
    ``separate_from(student) -> bool`` of the supervision, which says whether something was copied.
    """
    method = getattr(part, "separate_from", None)
    return False if method is None else bool(method(student))


class Stateless:
    """Base of supervisions and teachers that are a pure function of the step."""

    def advance(self, batch: Batch, step: int) -> None:
        """Nothing to prepare."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing to keep."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to take up."""
