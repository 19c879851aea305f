"""The one training loop. It knows no kind of supervision and measures nothing: it calls hooks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from distillens.data.batches import Batch, EpochSource, LoaderBatches
from distillens.data.labels import IGNORED, class_labels, counting_mask, outside
from distillens.errors import CheckpointError, DataError, DivergenceError, TrainingError
from distillens.forward import (
    frozen_statistics,
    input_type,
    make_gradients_dense,
    own_inputs,
    train_mode,
)
from distillens.models.weights import digest_file, load_weights, save_weights
from distillens.progress import Progress, silent
from distillens.sequences import run
from distillens.supervision.losses import predicted
from distillens.supervision.protocol import (
    Supervision,
    checked_supervision,
    is_across_examples,
    loss_of,
    separate_from,
    student_logits,
)
from distillens.training.memory import Trained, training_memory
from distillens.training.processes import accelerator_for, check_accelerator, is_sharded
from distillens.training.recipe import TrainingRecipe
from distillens.training.sharding import (
    first_not_finite,
    not_finite_by_design,
    prepare,
    whole,
)
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
from distillens.training.whole_batch import check_parts, whole_batch

CHECK_EVERY = 50
"""Steps between two looks at the losses: looking at each would make a GPU wait for the host."""

Hook = Callable[[EpochRecord, nn.Module], None]
"""Called after every epoch, when its checkpoint is safe, with its record and the plain model.

The global random states are restored after it, so hooks do not change what the training draws. Under
FSDP the model is sharded: it runs on all processes together or not at all.
"""


@dataclass(frozen=True)
class History:
    """What a training did. ``seconds`` is the time of all epochs, also those before a resumption."""

    records: tuple[EpochRecord, ...]
    digest: str | None
    """SHA-256 of the last weights file; None without a store."""

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
        What it fits. A fixed teacher that shares weights with the model is copied before training.
    batches
        Source of the epochs' batches: as many in each epoch as its length says. Another iterable, for
        example a `DataLoader`, is read as `LoaderBatches(batches)`. Labels are integer class labels of
        shape (B,) or (B, T); on the CPU, those equal to -100 do not count where a batch has no mask.
    recipe
        Epochs, batch size, learning rate and so on.
    store
        Where checkpoints go: the weights of epoch 0, of every ``recipe.checkpoint_every`` epochs and
        of the last epoch are kept. The state to resume from is written after every epoch; weights that
        are not kept are deleted when those of the next epoch are safe. A training that was interrupted
        continues from the last whole epoch and ends with the weights it would have had, bit for bit
        on one machine. For this, the global random states of torch, NumPy and Python are saved, and
        those of the source of batches (:class:`~distillens.data.LoaderBatches` says which).
    accelerator
        Of Accelerate: device, processes and mixed precision; by default what the launcher gives,
        in float32.
    hooks
        Called after every epoch.
    progress, title
        Where and under which name to show how far it is.

    Raises
    ------
    TrainingError
        The loss is no longer finite; the checkpoint of the last whole epoch is kept. Or the model has
        no trainable parameters, the number of batches is not what their source says, the accelerator
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
        the device is not there, or lacks a deterministic implementation that was asked for.
    """
    _check_kinds(model, supervision, recipe)
    if not callable(getattr(batches, "epoch", None)):
        batches = LoaderBatches(cast(Iterable[Any], batches))
    source = cast(EpochSource, batches)
    with training_memory([Trained(title, model, recipe)], source, accelerator):
        return _fit(model, supervision, source, recipe, store, accelerator, hooks, progress, title)


def _fit(
    model: nn.Module,
    supervision: Supervision,
    batches: EpochSource,
    recipe: TrainingRecipe,
    store: Store | None,
    accelerator: Accelerator | None,
    hooks: Sequence[Hook],
    progress: Progress,
    title: str,
) -> History:
    accelerator = accelerator or accelerator_for("float32")
    check_accelerator(accelerator, compiled=recipe.compile)
    check_parts(supervision, recipe.accumulate, accelerator.num_processes)
    _check_trainable(model, batches)
    # Before a checkpoint is loaded: a teacher remains what it was when it was given.
    separate_from(supervision, model)
    sharded = is_sharded(accelerator)
    optimizer = make_optimizer(model, recipe, fused=not sharded)
    fused = optimizer.defaults["fused"]
    by_design = not_finite_by_design(accelerator, model)
    # Sharding moves layer by layer what it keeps: the whole network need not fit on the device.
    if not sharded:
        model.to(accelerator.device)
    state = read_state(store.state) if store is not None and store.state.is_file() else None
    records: list[EpochRecord] = []
    if state is not None and store is not None:
        records = _resume(state, store, model, optimizer, supervision)
        _resume_random(state, store, batches, accelerator)
        if accelerator.is_main_process:
            remove_passed(store, recipe, state["epoch"])
    elif store is not None and accelerator.is_main_process:
        save_weights(store.weights(0), model)
    for group in optimizer.param_groups:
        # A training that began under another launcher brings the other way along.
        group["fused"] = fused
    wrapped, prepared = prepare(accelerator, model, optimizer)
    trained = cast(nn.Module, torch.compile(wrapped)) if recipe.compile else wrapped
    loop = _Loop(trained, supervision, prepared, recipe, accelerator, len(batches))
    with progress(title, recipe.epochs * len(batches), len(records) * len(batches)) as advance:
        for epoch in range(len(records), recipe.epochs):
            record = loop.epoch(batches, epoch, advance)
            records.append(record)
            _check_weights(accelerator, model, record, by_design)
            if store is not None:
                drawn = gather_object([_random_states(batches)])
                if sharded or accelerator.is_main_process:
                    main = accelerator.is_main_process
                    _save(store, model, optimizer, supervision, records, drawn, writes=main)
                    if main:
                        remove_passed(store, recipe, record.epoch)
            _call_hooks(hooks, record, model)
    accelerator.wait_for_everyone()
    # Mixed precision wraps the model's forward; give back the model as it came.
    accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
    digest = None
    if store is not None:
        digest = digest_file(store.weights(recipe.epochs))
    return History(tuple(records), digest)


def make_optimizer(
    model: nn.Module, recipe: TrainingRecipe, *, fused: bool = True
) -> torch.optim.Optimizer:
    """Return the optimizer that a recipe asks for.

    ``fused`` takes one pass over the weights instead of one an operation; shards and complex
    parameters have no such step.
    """
    fused = fused and all(parameter.is_floating_point() for parameter in model.parameters())
    if recipe.optimizer != "sgd":
        kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
        return kind(
            model.parameters(),
            lr=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            fused=fused,
        )
    return torch.optim.SGD(
        model.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.momentum > 0,
        weight_decay=recipe.weight_decay,
        fused=fused,
    )


def _check_kinds(model: Any, supervision: Any, recipe: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TrainingError(f"the model is a {type(model).__name__}; give a torch.nn.Module")
    checked_supervision(supervision)
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


def _call_hooks(hooks: Sequence[Hook], record: EpochRecord, model: nn.Module) -> None:
    if not hooks:
        return
    # A hook that draws, if only by iterating over a DataLoader, must not change the training: an
    # interrupted one would miss what its last hook drew.
    drawn = global_random_state()
    for hook in hooks:
        hook(record, model)
    restore_global_random_state(drawn)


def _check_weights(
    accelerator: Accelerator, model: nn.Module, record: EpochRecord, by_design: frozenset[str]
) -> None:
    # The losses are those before each update: the last update's result shows in the weights alone.
    name = first_not_finite(accelerator, model, by_design)
    if name is not None:
        raise DivergenceError(
            f"the weights are no longer finite after step {record.step} (first {name!r}, "
            f"learning rate {record.learning_rate:g}); the checkpoint of epoch "
            f"{record.epoch - 1} is kept; lower the learning rate or lengthen the warm-up"
        )


class _Loop:
    def __init__(
        self,
        model: nn.Module,
        supervision: Supervision,
        optimizer: Any,
        recipe: TrainingRecipe,
        accelerator: Accelerator,
        steps: int,
    ) -> None:
        self.model, self.supervision, self.optimizer = model, supervision, optimizer
        self.recipe, self.accelerator, self.steps = recipe, accelerator, steps
        self.across_examples = is_across_examples(supervision)
        self.classes: int | None = None
        self._frozen = frozen_statistics(model)
        self._input_type = input_type(model)
        self._parameters = [each for group in optimizer.param_groups for each in group["params"]]

    def epoch(
        self, batches: EpochSource, epoch: int, advance: Callable[[int], None]
    ) -> EpochRecord:
        began = time.perf_counter()
        train_mode(self.model, self._frozen)
        # Of whoever ran the model before, a hook for example.
        self._forget_gradients()
        losses: list[Tensor] = []
        extremes: list[Tensor] = []
        right = torch.zeros((), dtype=torch.int64, device=self.accelerator.device)
        seen = torch.zeros((), dtype=torch.int64, device=self.accelerator.device)
        checked, rate = 0, 0.0
        for place, batch in enumerate(batches.epoch(epoch)):
            if place == self.steps:
                raise self._miscounted(epoch, f"has more than {place} batches")
            step = epoch * self.steps + place
            batch = self._known(batch).to(self.accelerator.device)
            self.supervision.advance(batch, step)
            rate = self._set_rate(step)
            loss, hits, counted, labels = self._backward(batch, step)
            right += hits
            seen += counted
            self._step()
            losses.append(loss)
            extremes.append(labels)
            if len(losses) - checked >= CHECK_EVERY:
                self._check(losses[checked:], extremes[checked:], epoch, checked, rate)
                checked = len(losses)
            advance(1)
        if len(losses) < self.steps:
            raise self._miscounted(epoch, f"ended after {len(losses)} batches")
        self._check(losses[checked:], extremes[checked:], epoch, checked, rate)
        mean = torch.stack(losses).double().mean()
        local = torch.stack([mean, right.double(), seen.double()])
        summed = self.accelerator.reduce(local, "sum")
        assert isinstance(summed, Tensor)
        sums = summed.tolist()
        if not sums[2]:
            raise TrainingError(
                f"no label of epoch {epoch + 1} counts: all are {IGNORED} or masked; give each example "
                "that is to be learned any class as its label, also where only a teacher is fitted"
            )
        return EpochRecord(
            epoch=epoch + 1,
            step=(epoch + 1) * self.steps,
            learning_rate=rate,
            loss=sums[0] / self.accelerator.num_processes,
            accuracy=sums[1] / sums[2],
            seconds=time.perf_counter() - began,
        )

    def _set_rate(self, step: int) -> float:
        total = self.recipe.epochs * self.steps
        rate = self.recipe.learning_rate * self.recipe.schedule.factor_at(step, self.steps, total)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _known(self, batch: Batch) -> Batch:
        """Return a batch with int64 labels, a boolean mask, and the number of classes if it is known."""
        labels, mask = class_labels(batch.labels), batch.mask
        # Labels on a GPU are not looked at, since the host would wait when their batch is split.
        if mask is not None or labels.device.type == "cpu":
            mask = counting_mask(labels, mask)
        return replace(batch, labels=labels, mask=mask, classes=batch.classes or self.classes)

    def _backward(self, batch: Batch, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Add up a step's gradients.

        Returns
        -------
        The loss, the number of right predictions, the number of labels that count, and the lowest and
        highest of these labels.
        """
        device = self.accelerator.device
        loss = torch.zeros((), device=device)
        right, seen = (torch.zeros((), dtype=torch.int64, device=device) for _ in range(2))
        extremes: list[Tensor] = []
        parts = list(batch.split(self.recipe.accumulate))
        together = None
        if self.across_examples and len(parts) > 1:
            together = whole_batch(self.model, self._logits, self.supervision, batch, parts, step)
        for number, part in enumerate(parts, 1):
            if together is not None:
                restore_global_random_state(together.random[number - 1])
            with self.accelerator.no_sync(self.model) if number < len(parts) else nullcontext():
                logits = self._logits(part)
                if together is None:
                    weighed = loss_of(self.supervision, logits, part, step) * part.weight
                    loss += weighed.detach()
                else:
                    weighed = (logits * together.gradients[number - 1]).sum()
                self._differentiate(weighed)
            part = part.fitted(logits)
            right += part.counted(predicted(logits.detach()) == part.labels)
            seen += part.counted(torch.ones_like(part.labels))
            extremes.append(_label_extremes(part))
        if together is not None:
            loss = together.loss
            restore_global_random_state(together.random[-1])
        return loss, right, seen, torch.stack(torch.stack(extremes).aminmax())

    def _differentiate(self, loss: Tensor) -> None:
        if not loss.requires_grad:
            raise TrainingError(
                "the loss does not depend on any trainable parameter; the model's forward may detach "
                "its output or run under torch.no_grad()"
            )
        if self.accelerator.scaler is None:
            # What Accelerate would call, after looking for an optional package in every step.
            loss.backward()
        else:
            self.accelerator.backward(loss)

    def _step(self) -> None:
        make_gradients_dense(self._parameters)
        if self.recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(self._parameters, self.recipe.clip_norm)
        self.optimizer.step()
        self._forget_gradients()

    def _forget_gradients(self) -> None:
        # Accelerate's zero_grad inspects a signature in every call.
        for parameter in self._parameters:
            parameter.grad = None

    def _miscounted(self, epoch: int, what: str) -> TrainingError:
        return TrainingError(
            f"epoch {epoch + 1} {what}, but their source has length {self.steps}, which the learning "
            "rate follows; give the number with LoaderBatches(loader, steps_per_epoch=...)"
        )

    def _logits(self, part: Batch) -> Tensor:
        logits = student_logits(self._output(part), part, self.supervision)
        # A network that returns a tuple is not asked again which element holds the logits.
        self.classes = logits.shape[-1]
        return logits

    def _output(self, part: Batch) -> Any:
        # A network that modifies its inputs must not change what the teacher sees, or the data.
        inputs = own_inputs(part.inputs, self._input_type)
        try:
            if not is_sharded(self.accelerator):
                return run(self.model, inputs, part.further)
            # Accelerate wraps the forward of other networks in this.
            with self.accelerator.autocast():
                return run(self.model, inputs, part.further)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise TrainingError(
                f"a batch of {len(part)} example(s) is too small for BatchNorm; choose a batch_size "
                "that leaves more than one example for the last batch"
            ) from None

    def _check(
        self, losses: list[Tensor], extremes: list[Tensor], epoch: int, first: int, rate: float
    ) -> None:
        if not losses:
            return
        finite = torch.isfinite(torch.stack(losses))
        if not bool(finite.all()):
            place = first + int((~finite).nonzero()[0, 0])
            lowest, highest = extremes[place - first].tolist()
            classes = self.classes or 1
            if lowest < 0 or highest >= max(classes, 2):
                raise outside(lowest if lowest < 0 else highest, classes)
            raise DivergenceError(
                f"the loss is {float(losses[place - first])} at step {epoch * self.steps + place} "
                f"(epoch {epoch + 1}, learning rate {rate:g}); the checkpoint of epoch {epoch} is "
                "kept; lower the learning rate or lengthen the warm-up"
            )


def _label_extremes(batch: Batch) -> Tensor:
    """Return the lowest and the highest label that counts, where labels are."""
    left_out = batch.labels == IGNORED if batch.mask is None else ~batch.mask
    return torch.stack(batch.labels.masked_fill(left_out, 0).aminmax())


def _save(
    store: Store,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    supervision: Supervision,
    records: list[EpochRecord],
    drawn: list[dict[str, Any]],
    *,
    writes: bool,
) -> None:
    # Sharded states are gathered by all processes, and written by one.
    weights = whole(model.state_dict(), keep=writes)
    moments = whole(optimizer.state_dict(), keep=writes)
    if not writes:
        return
    # The state names the epoch that counts, so it is written last: whatever a kill leaves behind of
    # a later epoch is written again, with the same bits.
    epoch = records[-1].epoch
    digest = save_weights(store.weights(epoch), weights)
    write_history(store.history, records)
    write_state(
        store.state,
        {
            "epoch": epoch,
            "digest": digest,
            "optimizer": moments,
            "supervision": supervision.state_dict(),
            "random": drawn[0]["random"],
            "batches": drawn[0]["batches"],
            "others": drawn[1:],
        },
    )


def _random_states(batches: EpochSource) -> dict[str, Any]:
    return {"random": global_random_state(), "batches": _source_state(batches)}


def _source_state(batches: EpochSource) -> dict[str, Any]:
    state_dict = getattr(batches, "state_dict", None)
    return {} if state_dict is None else state_dict()


def _resume(
    state: dict[str, Any],
    store: Store,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    supervision: Supervision,
) -> list[EpochRecord]:
    weights = store.weights(state["epoch"])
    if not weights.is_file() or digest_file(weights) != state["digest"]:
        raise CheckpointError(
            f"{weights} is missing or not what the training state beside it describes; "
            "delete the folder to train again"
        )
    load_weights(weights, model)
    try:
        optimizer.load_state_dict(state["optimizer"])
        supervision.load_state_dict(state["supervision"])
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError):
        raise CheckpointError(
            f"{store.state} belongs to another training; delete its folder to train again"
        ) from None
    return read_history(store.history, state["epoch"])


def _resume_random(
    state: dict[str, Any], store: Store, batches: EpochSource, accelerator: Accelerator
) -> None:
    another = CheckpointError(
        f"{store.state} belongs to another training; delete its folder to train again"
    )
    drawn, others = state, state.get("others", [])
    # Another number of processes continues from the main one's state.
    if accelerator.process_index and len(others) == accelerator.num_processes - 1:
        drawn = others[accelerator.process_index - 1]
    saved = drawn.get("batches", {})
    if _source_state(batches) and not saved:
        raise CheckpointError(
            f"{store.state} lacks the random state of the loader, which decides the order of the "
            "examples; delete its folder to train again"
        )
    try:
        if saved:
            cast(Any, batches).load_state_dict(saved)
        restore_global_random_state(drawn["random"])
    except DataError as error:
        raise CheckpointError(f"{store.state} does not fit: {error}") from None
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError):
        raise another from None
