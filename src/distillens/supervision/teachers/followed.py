"""Teachers: a fixed module, an array of logits, and the online teacher that follows a trajectory."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from distillens.data.batches import Batch, Rows, too_large
from distillens.data.examples import Examples
from distillens.data.outputs import are_probabilities, candidates, tensor_or_parts
from distillens.errors import DataError, SupervisionError, listed
from distillens.files.array_likes import as_array
from distillens.forward.evaluation import bring, copied, evaluate, shares_tensors
from distillens.supervision import protocol
from distillens.supervision.kinds.builtin import PeriodRecipe
from distillens.supervision.losses import full_precision
from distillens.supervision.pace import Pace, pace_of
from distillens.supervision.protocol import Composite, NotCapturable, Teacher


class FixedTeacher(Composite):
    """Any module, in evaluation mode; the offline teacher.

    Its output is a tensor of logits, an object or mapping with ``logits``, such as a `ModelOutput` of
    transformers, or a tuple in which one element has as many classes as the student.

    Evaluation mode is set for each forward pass and every submodule's own mode is restored
    afterwards. Gradients are disabled during the pass; ``requires_grad`` is left as it is. The module
    gets its own copy of the inputs, in the type of its first floating-point parameter. It is moved to
    the device of the batch and stays there, unless it is quantised or spread over several devices;
    then the inputs are moved.

    The module gets the batch's inputs, and those of its further inputs that its ``forward`` takes by
    name. A text model of transformers gives the logits that it has for each sentence alone, as in
    `distillens.models.SequenceModel`; padding is marked by -1.

    Parameters
    ----------
    module
        The teacher. If it shares trainable parameters or persistent buffers with the student that
        `distillens.training.fit` trains, it is replaced by a copy before the first step: the teacher
        remains what it was when training started.
    """

    def __init__(self, module: nn.Module) -> None:
        if not isinstance(module, nn.Module):
            raise SupervisionError(
                f"a fixed teacher is a torch.nn.Module, got {type(module).__name__}; give logits that "
                "were computed before as RecordedTeacher(logits)"
            )
        self.module = module
        self._looked_at = False

    def separate_from(self, student: nn.Module) -> bool:
        """Replace the module by a copy if training the student would change it."""
        if not shares_tensors(self.module, student):
            return False
        self.module = copied(self.module)
        return True

    def logits(self, batch: Batch) -> Tensor:
        """Return the module's logits for the batch.

        Raises
        ------
        ModelError, DataError
            As `distillens.data.outputs.logits_of`.
        SupervisionError
            The outputs for the first batch are probabilities.
        """
        logits = protocol.teacher_logits(self._outputs(batch), batch)
        if not self._looked_at:
            # The first batch alone: a GPU makes the host wait for the answer.
            _refuse_probabilities(logits, "the teacher's outputs", "remove its softmax")
            self._looked_at = True
        return full_precision(logits.detach()).to(batch.inputs.device)

    def phase(self, step: int) -> Hashable:
        """Return the same for all steps: the module runs in each of them."""
        return id(self.module)

    def class_counts(self, batch: Batch) -> set[int]:
        """Return the numbers of classes that the module's output can have."""
        found = tensor_or_parts(self._outputs(batch), "the teacher")
        if isinstance(found, Tensor):
            return {self.logits(batch).shape[-1]}
        return {each.shape[-1] for each in candidates(found, batch.labels.shape)}

    def _outputs(self, batch: Batch) -> Any:
        bring(self.module, batch.inputs.device)
        return evaluate(self.module, batch.inputs, batch.further)


def as_teacher(given: Teacher | nn.Module) -> Teacher:
    """Return a teacher; other modules are wrapped in a :class:`FixedTeacher`.

    Raises
    ------
    SupervisionError
        It is neither a teacher nor a module.
    """
    # The state is only needed if a training is stored.
    if all(callable(getattr(given, name, None)) for name in ("advance", "logits")):
        return cast(Teacher, given)
    if isinstance(given, nn.Module):
        return FixedTeacher(given)
    raise SupervisionError(
        f"a teacher has the methods of distillens.supervision.Teacher, got {type(given).__name__}; "
        "give a module, FixedTeacher(module) or RecordedTeacher(logits)"
    )


class RecordedTeacher(Composite):
    """Logits that were computed before, looked up by stable index.

    Parameters
    ----------
    logits_NC
        (N, C) array or tensor of floating-point numbers or integers, in any byte order and memory
        layout; memory-mapped arrays are read row by row. They are returned in float32, or in
        float64 if they are float64.
    indices_N
        (N,) stable index of each row: integers of up to 64 bits, each at most once. -1 marks examples
        without a stable index and is refused. None where row i belongs to index i.

    Raises
    ------
    SupervisionError
        The logits are not numbers, the first rows are probabilities, or the indices are not one
        different integer a row.
    """

    def __init__(
        self, logits_NC: np.ndarray | Tensor, indices_N: Tensor | np.ndarray | None = None
    ) -> None:
        self._logits = _checked_logits(logits_NC)
        first = torch.arange(min(len(self._logits), 64))
        _refuse_probabilities(self._take(first), "the teacher logits", "give log(p)")
        self._sorted = None if indices_N is None else _sorted_indices(indices_N, len(self._logits))
        self._table: tuple[Examples, Tensor | None] | None = None
        self._note: str | None = None

    def table(self, rows: Rows) -> Tensor | None:
        """Return the (N, C) logits of all examples of a source on its device; None if they do not fit.

        Raises
        ------
        SupervisionError
            As :meth:`logits`, for any example of the source.
        """
        if self._table is None or self._table[0] is not rows.examples:
            self._table = (rows.examples, self._made_table(rows.examples))
        return self._table[1]

    def phase(self, step: int) -> Hashable:
        """Return the same for all steps.

        Raises
        ------
        NotCapturable
            The logits do not fit on the device.
        """
        if self._note is not None:
            raise NotCapturable(self._note)
        return "recorded"

    def notes(self) -> tuple[str, ...]:
        """Return why the logits are not held on the device, if they are not."""
        return () if self._note is None else (self._note,)

    def _made_table(self, examples: Examples) -> Tensor | None:
        device = examples.labels.device
        if not isinstance(self._logits, Tensor) or self._logits.device != device:
            size = len(examples) * int(np.prod(self._logits.shape[1:])) * 4
            self._note = too_large("the teacher's logits", size, device)
            if self._note is not None:
                return None
        rows = self._rows(examples.indices.cpu().to(torch.int64))
        everything = len(rows) == len(self._logits) and torch.equal(rows, torch.arange(len(rows)))
        values = self._take(slice(None) if everything else rows)
        check_finite(values)
        return values.to(device)

    def logits(self, batch: Batch) -> Tensor:
        """Return the rows of the batch's examples.

        Raises
        ------
        SupervisionError
            An example has no recorded row, or a row is not finite.
        """
        table = None if batch.rows is None else self.table(batch.rows)
        if batch.rows is not None and table is not None:
            return table.index_select(0, batch.rows.positions)
        values = self._take(self._rows(batch.indices.to(torch.int64)))
        check_finite(values, batch.mask)
        return values.to(batch.inputs.device)

    def _rows(self, index: Tensor) -> Tensor:
        """Return the rows of (B,) indices on the CPU."""
        if self._sorted is None or not len(self._logits):
            rows, missing = index, (index < 0) | (index >= len(self._logits))
        else:
            known, order = self._sorted
            place = torch.searchsorted(known, index).clamp_max(len(known) - 1)
            rows, missing = order[place], known[place] != index
        if bool(missing.any()):
            first = int(index[missing][0])
            raise SupervisionError(
                "an example has the index -1, which stands for none, and recorded teacher logits are "
                "found by the index; let the data give one to each example"
                if first == -1
                else f"no teacher logits for the example with index {first}; "
                f"{len(self._logits)} rows were given"
            )
        return rows

    def _take(self, rows: Tensor | slice) -> Tensor:
        if isinstance(self._logits, Tensor):
            where = rows if isinstance(rows, slice) else rows.to(self._logits.device)
            return full_precision(self._logits[where].detach())
        found = self._logits[rows if isinstance(rows, slice) else rows.numpy()]
        kind = np.float64 if found.dtype.kind == "f" and found.itemsize >= 8 else np.float32
        return torch.from_numpy(np.ascontiguousarray(found, dtype=kind))


def check_finite(values: Tensor, mask: Tensor | None = None) -> None:
    """Refuse (…, C) teacher logits that are not finite at a position that counts.

    −inf is allowed: it is the logit of a class that is masked.

    Raises
    ------
    SupervisionError
        They hold a NaN or an infinity.
    """
    wrong = torch.isnan(values) | torch.isposinf(values)
    if mask is not None and mask.shape == values.shape[:-1]:
        wrong &= mask.to(wrong.device)[..., None]
    if bool(wrong.any()):
        raise SupervisionError("the teacher logits hold a NaN or an infinity")


def _sorted_indices(indices: Any, rows: int) -> tuple[Tensor, Tensor]:
    """Return the indices of rows in increasing order, and the row of each."""
    values = indices.cpu().numpy() if isinstance(indices, Tensor) else np.asarray(indices)
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise SupervisionError(
            "the indices of teacher logits must be one integer a row, "
            f"got shape {tuple(values.shape)} of {values.dtype}"
        )
    # Unsigned numbers of 64 bits wrap around, as those of batches do.
    index = torch.from_numpy(np.array(values, dtype=np.int64))
    if len(index) != rows:
        raise SupervisionError(f"{rows} rows of teacher logits but {len(index)} indices")
    known, order = index.sort(stable=True)
    twice = known[1:] == known[:-1]
    if bool(twice.any()):
        value = int(known[1:][twice][0])
        raise SupervisionError(
            f"index {value} belongs to {int((index == value).sum())} rows of teacher logits; "
            "give each example one row, for example the mean over its passes"
        )
    if bool((index == -1).any()):
        raise SupervisionError(
            "a row of teacher logits has the index -1, which marks examples without a stable "
            "index; number the examples from 0"
        )
    return known, order


def _refuse_probabilities(values: Tensor, what: str, remedy: str) -> None:
    if are_probabilities(values):
        raise SupervisionError(
            f"{what} are probabilities: they lie in [0, 1] and add up to 1 in each row; a supervision "
            f"needs logits: {remedy}"
        )


def _checked_logits(logits: Any) -> np.ndarray | Tensor:
    try:
        values = logits.detach() if isinstance(logits, Tensor) else as_array(logits)
    except DataError as error:
        raise SupervisionError(f"teacher logits cannot be read: {error}") from None
    kind = str(values.dtype).removeprefix("torch.")
    if isinstance(values, Tensor):
        numbers = not (values.is_complex() or values.dtype == torch.bool or values.is_sparse)
    else:
        numbers = values.dtype.kind in "fiu"
    if not numbers:
        raise SupervisionError(
            f"teacher logits must be real numbers, got an array of {kind}; convert them to float32"
        )
    if values.ndim < 2:
        raise SupervisionError(f"teacher logits must have shape (N, C), got {tuple(values.shape)}")
    return values


@dataclass(frozen=True)
class TeacherCheckpoint:
    """A place on the teacher's trajectory: the step after which it was saved, and how to load it."""

    step: int
    load: Callable[[], Teacher | nn.Module]
    epoch: int | None = None
    """The epoch after which it was saved; None where the trajectory has one checkpoint per epoch."""


def epochs_of(path: Sequence[TeacherCheckpoint]) -> list[int]:
    """Return the epochs of checkpoints, counted from 1 if they have no epochs."""
    return [place if point.epoch is None else point.epoch for place, point in enumerate(path, 1)]


def periodic(
    path: Sequence[TeacherCheckpoint], period: PeriodRecipe | None
) -> list[TeacherCheckpoint]:
    """Keep the checkpoints at whole periods, and the last.

    Raises
    ------
    SupervisionError
        There is no checkpoint at a whole period.
    """
    if period is None:
        return list(path)
    epochs = epochs_of(path)
    per_epoch = path[0].step // epochs[0]
    steps = period.steps or (period.epochs or 1) * per_epoch
    wanted = set(range(steps, path[-1].step, steps))
    if steps % per_epoch or wanted - {point.step for point in path}:
        raise SupervisionError(
            f"a period of {period} does not fit the teacher's checkpoints, which are of the epochs "
            f"{listed(epochs)} ({per_epoch} steps per epoch); use a multiple of {path[0].step} steps, "
            "or a smaller training.checkpoint_every of the teacher"
        )
    return [point for point in path if point.step in wanted or point is path[-1]]


class OnlineTeacher(Composite):
    """The teacher's checkpoints in the order in which it learned (Algorithm 1).

    At the student's step t the teacher is the checkpoint min{tᵢ > t}; after the last, the last. The
    student's steps are mapped to the teacher's by their share of the whole training, so that a
    student with other batches or epochs follows the same path; with equal step counts the map is
    the identity of the paper.

    Parameters
    ----------
    checkpoints
        In any order; at least one.
    student_steps
        Steps of the student's whole training.
    pace
        From the student's progress to the teacher's.
    """

    def __init__(
        self,
        checkpoints: Sequence[TeacherCheckpoint],
        student_steps: int,
        *,
        pace: Pace | None = None,
    ) -> None:
        if not checkpoints:
            raise SupervisionError("an online teacher needs at least one checkpoint, got none")
        if student_steps < 1:
            raise SupervisionError(f"student_steps must be at least 1, got {student_steps}")
        self._checkpoints = sorted(checkpoints, key=lambda checkpoint: checkpoint.step)
        self._steps = [checkpoint.step for checkpoint in self._checkpoints]
        self._student_steps = student_steps
        self._pace = pace or pace_of(1)
        self._place: int | None = None
        self._teacher: Teacher | None = None
        self._student: nn.Module | None = None

    def separate_from(self, student: nn.Module) -> bool:
        """Remember the student: a checkpoint must not share tensors with it."""
        self._student = student
        return False

    def place(self, step: int) -> int:
        """Return which checkpoint, in order of steps, the student follows at its step."""
        progress = min(Fraction(1), Fraction(step, self._student_steps))
        teacher_step = self._pace(progress) * self._steps[-1]
        return min(bisect_right(self._steps, teacher_step), len(self._steps) - 1)

    def advance(self, batch: Batch, step: int) -> None:
        """Load the checkpoint of this step where it is another than before."""
        place = self.place(step)
        if place != self._place:
            checkpoint = self._checkpoints[place]
            self._teacher = as_teacher(checkpoint.load())
            if self._student is not None and protocol.separate_from(self._teacher, self._student):
                raise SupervisionError(
                    f"the teacher's checkpoint of step {checkpoint.step} shares tensors with the "
                    "student, which changes in training; let load() return a module of its own"
                )
            self._place, self.parts = place, (self._teacher,)
        super().advance(batch, step)

    def table(self, rows: Rows) -> Tensor | None:
        """Return the current checkpoint's logits of all examples, where it has them."""
        return protocol.table_of(self._teacher, rows)

    def phase(self, step: int) -> Hashable:
        """Return the current checkpoint and its phase."""
        phase = None if self._teacher is None else protocol.phase_of(self._teacher, step)
        return self._place, phase

    def logits(self, batch: Batch) -> Tensor:
        """Return the current checkpoint's outputs.

        Raises
        ------
        SupervisionError
            ``advance`` was not called before.
        """
        if self._teacher is None:
            raise SupervisionError("advance(batch, step) must be called before logits(batch)")
        return self._teacher.logits(batch)
