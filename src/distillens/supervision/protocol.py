"""The protocol of supervisions, through which alone the training loop uses them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from distillens.data.batches import Batch, Rows
from distillens.data.outputs import logits_of
from distillens.errors import SupervisionError


class Advanced(Protocol):
    """What supervisions and teachers have in common."""

    def advance(self, batch: Batch, step: int) -> None:
        """Prepare for a step, for example follow the teacher to its next checkpoint."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs: tensors, numbers and strings.

        It is empty for a teacher that does not learn.
        """
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state that ``state_dict`` returned."""
        ...


@runtime_checkable
class Supervision(Advanced, Protocol):
    """What the student fits at each step: a loss of its logits.

    The loop calls ``advance(batch, step)`` once a global step, then ``loss`` for each of its
    micro-batches. Logits have shape (B, C), or (B, T, C) with ``batch.mask`` (B, T).

    A supervision may have the attribute ``across_examples``, False if its loss is the mean of losses
    of single examples. Without it, or if it is True, the loop with ``accumulate`` above 1 calls
    ``loss`` once, with the logits of the whole batch, and several processes are refused.

    On a GPU the loop can capture a step as a CUDA graph, which repeats the operations of one step on
    tensors that stay in place. A supervision that allows it has a method ``phase(step)``; see
    :func:`phase_of`.
    """

    def loss(self, logits: Tensor, batch: Batch, step: int) -> Tensor:
        """Return the scalar loss, a mean over examples (and positions that count)."""
        ...


@runtime_checkable
class Teacher(Advanced, Protocol):
    """A source of the logits that a student learns from."""

    def logits(self, batch: Batch) -> Tensor:
        """Return (B, C) or (B, T, C) logits, without a gradient."""
        ...


def separate_from(part: object, student: nn.Module) -> bool:
    """Let a supervision or a teacher copy tensors that training the student would change.

    The training loop calls this once before the first step. It calls the optional method
    ``separate_from(student) -> bool`` of the supervision, which returns whether something was copied.
    """
    method = getattr(part, "separate_from", None)
    return False if method is None else bool(method(student))


class NotCapturable(Exception):  # noqa: N818 (a reason, not an error)
    """Reason why the steps of a supervision cannot be captured."""


def phase_of(part: object, step: int) -> Hashable:
    """Return all that a captured step depends on apart from tensors that stay in place.

    Steps of equal phase call the same operations on the same tensors: what differs between them,
    ``advance(batch, step)`` writes into these tensors. There, ``batch`` has no examples, but has the
    epoch and the source of the step. None means that this step is not captured.

    Raises
    ------
    NotCapturable
        No step can be captured, with the reason. A supervision or teacher without a method
        ``phase(step)`` raises it.
    """
    method = getattr(part, "phase", None)
    if method is None:
        raise NotCapturable(f"{type(part).__name__} has no method phase(step)")
    return method(step)


def table_of(teacher: object, rows: Rows) -> Tensor | None:
    """Return a teacher's logits for all examples of a source that is held on the device.

    They are (N, C), on the device and in the order of ``rows.examples``. None if the teacher has no
    such table; its logits are then computed for each batch. A teacher that has one returns it from a
    method ``table(rows)``; as long as it returns the same object, the values are the same.
    """
    method = getattr(teacher, "table", None)
    return None if method is None else method(rows)


def notes_of(part: object) -> tuple[str, ...]:
    """Return a supervision's or teacher's note on the device of its data."""
    method = getattr(part, "notes", None)
    return () if method is None else tuple(method())


class Composite:
    """Base of supervisions and teachers, which pass calls on to the parts that they consist of.

    One without parts is a pure function of the step.
    """

    parts: Sequence[Any] = ()

    def notes(self) -> tuple[str, ...]:
        """Return the parts' notes on the device of their data."""
        return tuple(note for part in self.parts for note in notes_of(part))

    def separate_from(self, student: nn.Module) -> bool:
        """Keep the parts as they are while the student changes."""
        copied = [separate_from(part, student) for part in self.parts]
        return any(copied)

    def advance(self, batch: Batch, step: int) -> None:
        """Advance all parts."""
        for part in self.parts:
            part.advance(batch, step)

    def class_counts(self, batch: Batch) -> set[int]:
        """Return the numbers of classes that the parts know."""
        return set().union(*(class_counts(part, batch) for part in self.parts))

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the parts that have one, by their place; of one part, its state."""
        if len(self.parts) == 1:
            return self.parts[0].state_dict()
        states = {str(place): part.state_dict() for place, part in enumerate(self.parts)}
        return {place: state for place, state in states.items() if state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the states of the parts."""
        if len(self.parts) == 1:
            self.parts[0].load_state_dict(state)
            return
        for place, part in enumerate(self.parts):
            part.load_state_dict(state.get(str(place), {}))


def is_across_examples(supervision: Any) -> bool:
    """Return whether a loss may compare the examples of a batch, so that it must see all of them.

    This is assumed of a supervision or loss function without an attribute
    ``across_examples = False``.
    """
    return bool(getattr(supervision, "across_examples", True))


def reads_layers(supervision: Any) -> bool:
    """Return whether a supervision reads inner features, which belong to one forward pass."""
    return bool(getattr(supervision, "reads_layers", False))


def class_counts(source: Any, batch: Batch) -> set[int]:
    """Return how many classes a supervision or teacher may have; empty if it does not know."""
    found = getattr(source, "class_counts", None)
    return set() if found is None else found(batch)


def checked_supervision(given: Any) -> Any:
    """Check and return a supervision.

    Raises
    ------
    SupervisionError
        It lacks the methods of a supervision.
    """
    # The state is only needed if a training is stored.
    if all(callable(getattr(given, name, None)) for name in ("advance", "loss")):
        return given
    raise SupervisionError(
        f"a supervision is wanted, got {type(given).__name__}; give for example OneHot() or "
        "Distillation(FixedTeacher(teacher))"
    )


def loss_of(supervision: Supervision, logits: Tensor, batch: Batch, step: int) -> Tensor:
    """Return a supervision's loss of a batch.

    Raises
    ------
    SupervisionError
        It is not a tensor without axes.
    """
    return checked_loss(supervision.loss(logits, batch, step), "a loss")


def checked_loss(loss: Any, name: str) -> Tensor:
    """Check and return a loss.

    Raises
    ------
    SupervisionError
        It is not a tensor without axes.
    """
    if not isinstance(loss, Tensor) or loss.ndim:
        got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise SupervisionError(
            f"{name} must be a tensor without axes, the mean over examples; got {got}"
        )
    return loss


def student_logits(output: Any, batch: Batch, supervision: Any) -> Tensor:
    """Return the logits in a student's output, with the class axis last.

    If it is a tuple of which several elements can be the logits, the number of classes decides: the
    batch's, or the teacher's.

    Raises
    ------
    ModelError, DataError
        As `distillens.data.outputs.logits_of`.
    """

    def counts() -> set[int]:
        return {batch.classes} if batch.classes else class_counts(supervision, batch)

    return logits_of(output, batch.labels.shape, counts, whose="the student")


def teacher_logits(output: Any, batch: Batch) -> Tensor:
    """Return the logits in a teacher's output, with the class axis last.

    Raises
    ------
    ModelError, DataError
        As `distillens.data.outputs.logits_of`.
    """
    known = {batch.classes} if batch.classes else set()
    logits = logits_of(output, batch.labels.shape, lambda: known, whose="the teacher")
    # An inference tensor, which no loss may save for its backward pass.
    return logits.clone() if logits.is_inference() else logits
