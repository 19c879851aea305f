"""The one training loop. It knows no kind of supervision and measures nothing: it calls hooks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from distillens.data.batches import Batches, EpochSource, OpenEpoch
from distillens.data.labels import IGNORED, outside
from distillens.data.loaders import LoaderBatches
from distillens.errors import CheckpointError, DataError, DivergenceError, TrainingError
from distillens.models.checkpoints import load_weights
from distillens.models.weights import digest_file, save_weights
from distillens.progress import Progress, silent
from distillens.supervision.protocol import (
    Supervision,
    checked_supervision,
    notes_of,
    separate_from,
)
from distillens.training.captured import CapturedStep, graph_for
from distillens.training.device import Lane, check_every, numerics
from distillens.training.memory import training_memory
from distillens.training.processes import accelerator_for, check_accelerator, is_sharded
from distillens.training.recipe import TrainingRecipe
from distillens.training.sharding import not_finite, prepare, whole
from distillens.training.step import TrainingStep, check_parts, label_extremes
from distillens.training.trajectory import (
    EpochRecord,
    Store,
    global_random_state,
    read_history,
    read_state,
    remove_passed,
    restore_global_random_state,
    write_history,
    write_state,
)

SAVE_SECONDS = 10.0
"""Seconds that an interrupted training may lose where no weights are to be kept. On a GPU, writing the
state after every epoch can take longer than the epoch."""

Hook = Callable[[EpochRecord, nn.Module], None]
"""Called after every epoch with its record and the plain model, after the checkpoint if one is written.

The global random states are restored after it, so hooks do not change what the training draws. Under
FSDP the model is sharded: it runs on all processes together or not at all.
"""


@dataclass(frozen=True)
class History:
    """History of a training. ``seconds`` is the time of all epochs, also those before a resumption."""

    records: tuple[EpochRecord, ...]
    digest: str | None
    """SHA-256 of the last weights file; None without a store."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Reasons why an accelerator was idle in some epoch, without repetitions."""
        return tuple(dict.fromkeys(note for record in self.records for note in record.notes))

    @property
    def seconds(self) -> float:
        """Seconds of training."""
        return sum(record.seconds for record in self.records)


def fit(
    model: nn.Module,
    supervision: Supervision,
    batches: EpochSource | Iterable[Any],
    recipe: TrainingRecipe,
    *,
    store: Store | None = None,
    accelerator: Accelerator | None = None,
    hooks: Sequence[Hook] = (),
    progress: Progress = silent,
    title: str = "training",
) -> History:
    """Train a model in place under a supervision.

    The model gets its own copy of each batch's inputs, converted to the floating-point type of its
    parameters, and may modify it. Gradients that were left on the model are discarded. Every epoch
    starts with ``model.train()``. Only normalisation layers that are in evaluation mode when ``fit``
    is called, and whose own parameters are frozen, stay in evaluation mode, so that the statistics of
    a frozen backbone do not move. Sparse gradients are made dense before the optimizer step, so each
    optimizer does what it does for dense ones.

    Parameters
    ----------
    model
        Any module that returns logits (B, C), or (B, T, C) for labels (B, T): as a tensor, as an object
        or mapping with ``logits``, or in a tuple in which one element can be the logits. On return
        it holds the last weights; under FSDP it is sharded in place and stays so, and the store has
        the whole weights.
    supervision
        Supervision that it fits. A fixed teacher that shares weights with the model is copied first.
    batches
        Source of the epochs' batches; its length is their number per epoch. Another iterable, for
        example a `DataLoader`, is read as `LoaderBatches(batches)`. Labels are integer class labels of
        shape (B,) or (B, T); on the CPU, those equal to -100 do not count where a batch has no mask.
    recipe
        Epochs, batch size, learning rate and so on.
    store
        Store of checkpoints: the weights of epoch 0, of every ``recipe.checkpoint_every`` epochs and
        of the last epoch are kept. The state to resume from is written with them, and after every other
        epoch that ends ten seconds or more after the last checkpoint; weights that are not kept are
        deleted after later ones were written. A training that was interrupted continues from the last
        checkpoint and ends with the weights it would have had, bit for bit
        on one machine. For this, the global random states of torch, NumPy and Python are saved, and
        those of the source of batches (see :class:`~distillens.data.LoaderBatches`).
    accelerator
        Accelerate's device, processes and mixed precision; by default those of the launcher,
        in float32.
    hooks
        Called after every epoch.
    progress, title
        Progress display, and the name in it.

    Raises
    ------
    TrainingError
        The loss is no longer finite; the checkpoint of the last whole epoch is kept. Or the model has
        no trainable parameters, the number of batches is not the length of their source, the accelerator
        asks for what this loop does not support, or the loss compares the examples of a batch that
        several processes share.
    DataError
        Labels are no integers, do not fit the logits, or are no classes.
    ModelError
        The model's output holds no logits.
    CheckpointError
        A checkpoint cannot be written or read.
    DeviceError
        A batch does not fit into the memory of the device; the message names the size that fits. Or
        the device does not exist, or lacks a deterministic implementation that was asked for.
    """
    training = Training(model, supervision, recipe, store, accelerator, tuple(hooks), title)
    if not callable(getattr(batches, "epoch", None)):
        batches = LoaderBatches(cast(Iterable[Any], batches))
    return _explained([training], cast(EpochSource, batches), progress)[0]


@dataclass(frozen=True)
class Training:
    """One of several networks that `fit_together` trains on the same batches.

    The attributes are the parameters of `fit`, and two more.

    Attributes
    ----------
    seed : int or None
        Seed for `torch.manual_seed` before the first step; None keeps the random state.
    finished : callable
        Called with the `History` of the training as soon as its last epoch is over.
    """

    model: nn.Module
    supervision: Supervision
    recipe: TrainingRecipe
    store: Store | None = None
    accelerator: Accelerator | None = None
    hooks: tuple[Hook, ...] = ()
    title: str = "training"
    seed: int | None = None
    finished: Callable[[History], object] = lambda history: None


def fit_together(
    trainings: Sequence[Training], batches: EpochSource, *, progress: Progress = silent
) -> list[History]:
    """Train several networks at the same time, each as `fit` trains it alone, bit for bit.

    Each step takes one batch for all of them, one network after the other; on a GPU each network has a
    stream of its own, so that small networks share the device. A training that diverges ends alone; the
    others go on, and its error is raised at the end. Trainings that were interrupted at different epochs
    continue: those that are behind catch up first. The seconds of an epoch are shared out evenly.

    Parameters
    ----------
    trainings
        The networks; their recipes may have different numbers of epochs.
    batches
        The source of the batches of all of them.
    progress
        Progress display of all trainings.

    Raises
    ------
    TrainingError
        As `fit`; or the source of the batches has a random state of its own, or there are several
        processes.
    """
    if not callable(getattr(batches, "epoch", None)) or hasattr(batches, "load_state_dict"):
        raise TrainingError(
            f"the batches are a {type(batches).__name__}; several networks are trained at the same time "
            "on distillens.data.Batches, or another source without a random state of its own"
        )
    return _explained(list(trainings), batches, progress)


def _explained(
    trainings: list[Training], batches: EpochSource, progress: Progress
) -> list[History]:
    """Train networks; errors of the device become one-line errors."""
    # Outside the training function, whose frames hold its memory until it has returned.
    for training in trainings:
        _check_kinds(training)
    with training_memory(trainings, batches):
        return _fit(trainings, batches, progress)


def _fit(trainings: list[Training], batches: EpochSource, progress: Progress) -> list[History]:
    with ExitStack() as stack:
        wanted = any(training.recipe.deterministic for training in trainings)
        stack.enter_context(numerics(deterministic=wanted))
        students = []
        for training in trainings:
            if training.seed is not None:
                torch.manual_seed(training.seed)
            students.append(_Student(training, batches, takes_turns=len(trainings) > 1))
        for student in students:
            steps = [
                len(batches) * epochs for epochs in (student.recipe.epochs, student.epochs_done)
            ]
            student.advance = stack.enter_context(progress(student.training.title, *steps))
            if student.epochs_done >= student.recipe.epochs:
                student.finish()
        last = max(student.recipe.epochs for student in students)
        for epoch in range(min(student.epochs_done for student in students), last):
            active = [each for each in students if each.epochs_done == epoch < each.recipe.epochs]
            if active := [student for student in active if student.error is None]:
                _train_epoch(active, batches, epoch)
        for student in students:
            if student.error is not None:
                raise student.error
        return [student.history for student in students if student.history is not None]


def _train_epoch(students: list[_Student], batches: EpochSource, epoch: int) -> None:
    """Train networks for an epoch, and write the states from which they resume."""
    began = time.perf_counter()
    opened = batches.open_epoch(epoch) if isinstance(batches, Batches) else None
    for student in students:
        student.begin_epoch(epoch)
    steps = len(batches)
    source = batches.epoch(epoch) if opened is None else [None] * steps
    taken = 0
    for taken, batch in enumerate(source, 1):
        if taken > steps:
            break
        for student in students:
            student.take_step(opened, batch, taken - 1)
    if taken != steps:
        what = f"ended after {taken}" if taken < steps else f"has more than {steps}"
        raise TrainingError(
            f"epoch {epoch + 1} {what} batches, but their source has length {steps}, which the learning "
            "rate follows; give the number with LoaderBatches(loader, steps_per_epoch=...)"
        )
    for student in students:
        student.end_steps()
    seconds = time.perf_counter() - began
    for student in students:
        student.end_epoch(seconds / len(students))


def make_optimizer(
    model: nn.Module, recipe: TrainingRecipe, *, fused: bool = True
) -> torch.optim.Optimizer:
    """Return the optimizer that a recipe asks for.

    ``fused`` takes one pass over the weights instead of one an operation; shards and complex
    parameters have no such step.
    """
    fused = fused and all(parameter.is_floating_point() for parameter in model.parameters())
    settings: dict[str, Any] = {
        "lr": recipe.learning_rate,
        "weight_decay": recipe.weight_decay,
        "fused": fused,
    }
    if recipe.optimizer == "sgd":
        settings |= {"momentum": recipe.momentum, "nesterov": recipe.momentum > 0}
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    return kinds[recipe.optimizer](model.parameters(), **settings)


def _check_kinds(training: Training) -> None:
    model, recipe = training.model, training.recipe
    if not isinstance(model, nn.Module):
        raise TrainingError(f"the model is a {type(model).__name__}; give a torch.nn.Module")
    checked_supervision(training.supervision)
    if not isinstance(recipe, TrainingRecipe):
        raise TrainingError(
            f"the recipe is a {type(recipe).__name__}; give "
            "TrainingRecipe(epochs=..., learning_rate=...)"
        )


def _check_trainable(model: nn.Module, batches: EpochSource) -> None:
    lazy = next((name for name, each in model.named_parameters() if is_lazy(each)), None)
    if lazy is not None:
        raise TrainingError(
            f"the model's parameter {lazy!r} has no shape yet; run the model once on a batch first"
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise TrainingError(
            f"the model {type(model).__name__} has no trainable parameters; call "
            "model.requires_grad_(True), or on the part that is to learn"
        )
    if not len(batches):
        raise TrainingError("there are no batches to train on; their source has length 0")


class _Student:
    """A network in training: its step, its epochs so far, and its files."""

    def __init__(self, training: Training, batches: EpochSource, *, takes_turns: bool) -> None:
        model, supervision = training.model, training.supervision
        self.training, self.recipe, self.batches = training, training.recipe, batches
        self.accelerator = accelerator = training.accelerator or accelerator_for("float32")
        check_accelerator(accelerator, compiled=self.recipe.compile)
        if takes_turns and accelerator.num_processes > 1:
            raise TrainingError("several networks are trained at the same time by one process only")
        check_parts(supervision, self.recipe.accumulate, accelerator.num_processes)
        _check_trainable(model, batches)
        # Before a checkpoint is loaded, so that a teacher keeps the weights it was given with.
        separate_from(supervision, model)
        self.error: DivergenceError | None = None
        self.history: History | None = None
        self.records: list[EpochRecord] = []
        self.advance: Callable[[int], None] = lambda steps: None
        self._checked = self._epoch = 0
        self._saved = time.monotonic()
        trained = {name for name, each in model.named_parameters() if each.requires_grad}
        # Buffers and frozen parameters may hold infinities by design, such as an attention mask.
        self._by_design = set(not_finite(accelerator, model)) - trained
        self._start(is_sharded(accelerator))
        self._written = self.epochs_done
        """The epoch of the last checkpoint."""
        self._random = global_random_state() if takes_turns else None

    def _start(self, sharded: bool) -> None:
        """Resume the training if it was interrupted, and wrap the network for its steps."""
        model, store, accelerator = self.training.model, self.training.store, self.accelerator
        batches = self.batches
        self.optimizer = make_optimizer(model, self.recipe, fused=not sharded)
        fused = self.optimizer.defaults["fused"]
        # Sharding moves shards layer by layer: the whole network need not fit on the device.
        if not sharded:
            model.to(accelerator.device)
        if store is not None and store.state.is_file():
            self._resume(store)
        elif store is not None and accelerator.is_main_process:
            save_weights(store.weights(0), model)
        for group in self.optimizer.param_groups:
            # A training that began under another launcher has the other setting in its state.
            group["fused"] = fused
        self._wrapped, prepared = prepare(accelerator, model, self.optimizer)
        trained = self._wrapped
        if self.recipe.compile:
            trained = cast(nn.Module, torch.compile(self._wrapped))
        self.step = TrainingStep(
            trained, self.training.supervision, prepared, self.recipe, accelerator, len(batches)
        )
        self._captured: CapturedStep | None = None
        new_graph = graph_for(accelerator.device)
        if new_graph is not None and isinstance(batches, Batches) and batches.held is not None:
            self._captured = CapturedStep(self.step, batches, new_graph)
        captures = self._captured is not None and self._captured.reason is None
        self._lane = Lane(accelerator.device if captures else torch.device("cpu"))

    def _resume(self, store: Store) -> None:
        """Load the last checkpoint."""
        training, state = self.training, read_state(store.state)
        weights = store.weights(state["epoch"])
        if not weights.is_file() or digest_file(weights) != state["digest"]:
            raise CheckpointError(
                f"{weights} is missing or not what the training state describes; "
                "delete the folder to train again"
            )
        load_weights(weights, training.model)
        with _of_this_training(store):
            self.optimizer.load_state_dict(state["optimizer"])
            training.supervision.load_state_dict(state["supervision"])
        self.records = read_history(store.history, state["epoch"])
        _resume_random(state, store, self.batches, self.accelerator)
        if self.accelerator.is_main_process:
            remove_passed(store, self.recipe, state["epoch"])

    @property
    def epochs_done(self) -> int:
        return len(self.records)

    def begin_epoch(self, epoch: int) -> None:
        self._epoch, self._checked = epoch, 0
        self.step.begin_epoch()
        self._lane.begin()

    def take_step(self, opened: OpenEpoch | None, batch: Any, place: int) -> None:
        """Take a step of the epoch, on a batch or on one of an epoch that is held on the device."""
        if self.error is not None:
            return
        number = self._epoch * len(self.batches) + place
        with self._lane.current(), self._turn():
            if opened is not None and self._captured is not None:
                self._captured(opened, place, number)
            else:
                self.step(batch if opened is None else opened.batch(place), number)
            if place + 1 - self._checked >= check_every(self.accelerator.device):
                self._check(place + 1)
        self.advance(1)

    @contextmanager
    def _turn(self, *, ends_epoch: bool = False) -> Iterator[None]:
        """Restore the random states of the network's last step, if others take steps in between."""
        captured = self._captured
        draws = ends_epoch or captured is None or captured.draws
        if self._random is None or not draws:
            yield
            return
        restore_global_random_state(self._random)
        yield
        self._random = global_random_state()

    def end_steps(self) -> None:
        """Look at the losses of the epoch; on an accelerator the host waits here."""
        self._lane.end()
        if self.error is None:
            self._check(len(self.batches))

    def end_epoch(self, seconds: float) -> None:
        """Record the epoch, write the checkpoint and call the hooks."""
        if self.error is not None:
            return
        record, model = self._record(seconds), self.training.model
        # The losses are those before each update: the last update's result shows in the weights alone.
        names = [n for n in not_finite(self.accelerator, model) if n not in self._by_design]
        if names:
            self._diverge(
                f"the weights are no longer finite after step {record.step} (first {names[0]!r}, "
                f"learning rate {record.learning_rate:g})"
            )
            return
        self.records.append(record)
        with self._turn(ends_epoch=True):
            states = gather_object([_random_states(self.batches)])
            epoch, several = self.epochs_done, self.accelerator.num_processes > 1
            # Clocks of several processes may differ, and all of them take part.
            overdue = time.monotonic() - self._saved >= SAVE_SECONDS
            if several or overdue or self.recipe.keeps(epoch):
                self._write(states)
            if self.training.hooks:
                # A hook that draws, if only by iterating over a DataLoader, must not change the
                # training: an interrupted one would miss what its last hook drew.
                random_state = global_random_state()
                for hook in self.training.hooks:
                    hook(record, model)
                restore_global_random_state(random_state)
        if self.epochs_done == self.recipe.epochs:
            self.finish()

    def _write(self, states: list[dict[str, Any]]) -> None:
        """Write a checkpoint; ``states`` are the random states of the processes."""
        writes, store = self.accelerator.is_main_process, self.training.store
        self._saved, self._written = time.monotonic(), self.epochs_done
        if store is None or not (is_sharded(self.accelerator) or writes):
            return
        # Sharded states are gathered by all processes, and written by one.
        weights = whole(self.training.model.state_dict(), keep=writes)
        moments = whole(self.optimizer.state_dict(), keep=writes)
        if not writes:
            return
        # What captured steps need must not bind the file to the device.
        for group in moments["param_groups"]:
            group["lr"] = self.step.rate
            if "capturable" in group:
                group["capturable"] = False
        # The state names the epoch that counts, so it is written last: whatever a kill leaves behind of
        # a later epoch is written again, with the same bits.
        state = {
            "epoch": self.epochs_done,
            "digest": save_weights(store.weights(self.epochs_done), weights),
            "optimizer": moments,
            "supervision": self.training.supervision.state_dict(),
            **states[0],
            "others": states[1:],
        }
        write_history(store.history, self.records)
        write_state(store.state, state)
        remove_passed(store, self.recipe, self.epochs_done)

    def finish(self) -> None:
        """Unwrap the model and report the history of the training."""
        self.accelerator.wait_for_everyone()
        # Mixed precision wraps the model's forward.
        self.accelerator.unwrap_model(self._wrapped, keep_fp32_wrapper=False)
        store = self.training.store
        digest = None if store is None else digest_file(store.weights(self.recipe.epochs))
        self.history = History(tuple(self.records), digest)
        self.training.finished(self.history)

    def _record(self, seconds: float) -> EpochRecord:
        tally = self.step.tally
        local = torch.stack(
            [tally.losses.double().mean(), tally.right.double(), tally.seen.double()]
        )
        sums = cast(Tensor, self.accelerator.reduce(local, "sum")).tolist()
        if not sums[2]:
            raise TrainingError(
                f"no label of epoch {self._epoch + 1} counts: all are {IGNORED} or masked; give each "
                "example that is to be learned any class as its label, also where only a teacher is "
                "fitted"
            )
        return EpochRecord(
            epoch=self._epoch + 1,
            step=(self._epoch + 1) * len(self.batches),
            learning_rate=self.step.rate,
            loss=sums[0] / self.accelerator.num_processes,
            accuracy=sums[1] / sums[2],
            seconds=seconds,
            notes=self._notes(),
        )

    def _notes(self) -> tuple[str, ...]:
        """Return the reasons why an accelerator is idle."""
        if self.accelerator.device.type == "cpu" and self._captured is None:
            return ()
        notes = [*notes_of(self.training.supervision)]
        if not isinstance(self.batches, Batches):
            notes.append(f"batches come from the host ({type(self.batches).__name__})")
        elif self.batches.note is not None:
            notes.append(self.batches.note)
        if self._captured is not None and self._captured.reason is not None:
            notes.append(f"steps run eagerly: {self._captured.reason}")
        return tuple(dict.fromkeys(notes))

    def _check(self, stop: int) -> None:
        """Look at the losses of the steps since the last look."""
        first, self._checked = self._checked, stop
        losses = self.step.tally.losses[first:stop].tolist()
        place = next((k for k, loss in enumerate(losses) if not math.isfinite(loss)), None)
        if place is not None:
            self._check_labels(place)
            number = self._epoch * len(self.batches) + first + place
            self._diverge(
                f"the loss is {losses[place]} at step {number} (epoch {self._epoch + 1}, learning rate "
                f"{self.step.rate:g})"
            )
        self.step.labels.clear()

    def _check_labels(self, place: int) -> None:
        """Refuse labels outside the classes, whose losses are NaN on an accelerator."""
        classes, spans = self.step.classes or 1, [self.step.label_span]
        if self.step.label_span is None:
            spans = [label_extremes(labels, mask) for labels, mask in self.step.labels[place]]
        for lowest, highest in (span for span in spans if span is not None):
            if lowest < 0 or highest >= max(classes, 2):
                raise outside(lowest if lowest < 0 else highest, classes)

    def _diverge(self, what: str) -> None:
        """End this training; one that others take turns with raises its error at their end."""
        self.error = DivergenceError(
            f"{what}; the checkpoint of epoch {self._written} is kept; lower the learning rate or "
            "lengthen the warm-up"
        )
        if self._random is None:
            raise self.error


def _random_states(batches: EpochSource) -> dict[str, Any]:
    state_dict = getattr(batches, "state_dict", dict)
    return {"random": global_random_state(), "batches": state_dict()}


@contextmanager
def _of_this_training(store: Store) -> Iterator[None]:
    """Turn errors of loading a state into one line."""
    try:
        yield
    except DataError as error:
        raise CheckpointError(f"{store.state} does not fit: {error}") from None
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError):
        raise CheckpointError(
            f"{store.state} belongs to another training; delete its folder to train again"
        ) from None


def _resume_random(
    state: dict[str, Any], store: Store, batches: EpochSource, accelerator: Accelerator
) -> None:
    mine, others = state, state.get("others", [])
    # Another number of processes continues from the main one's state.
    if accelerator.process_index and len(others) == accelerator.num_processes - 1:
        mine = others[accelerator.process_index - 1]
    saved = mine.get("batches", {})
    if not saved and getattr(batches, "state_dict", dict)():
        raise CheckpointError(
            f"{store.state} lacks the random state of the loader, which decides the order of the "
            "examples; delete its folder to train again"
        )
    with _of_this_training(store):
        if saved:
            cast(Any, batches).load_state_dict(saved)
        restore_global_random_state(mine["random"])
