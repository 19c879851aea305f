"""Errors when memory runs out in training, with the batch size that fits."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from distillens.data.batches import Batch, EpochSource
from distillens.data.outputs import logits_of
from distillens.errors import DeviceError
from distillens.forward.device_errors import (
    memory_there,
    ran_out_of_memory,
    translate,
)
from distillens.forward.evaluation import input_type, own_inputs
from distillens.forward.sequences import run

if TYPE_CHECKING:
    from distillens.training.loop import Training


@contextmanager
def training_memory(networks: Sequence[Training], batches: EpochSource) -> Iterator[None]:
    """Turn a device's failures in training into one line, with the batch size that fits.

    If memory ran out, all memory of the training is freed, and the first network takes a
    step of ever smaller micro-batches until one fits. With several processes no step is tried, since
    all of them would have to take part.

    Raises
    ------
    DeviceError
        Memory ran out, or an operation has no deterministic implementation.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        title = networks[0].title
        if not ran_out_of_memory(error):
            message = translate(error, f"a step of {title}", "")
            if message is None:
                raise
            raise message from error
        there = memory_there(error)
        # The frames of the failed step hold its activations.
        traceback.clear_frames(error.__traceback__)
        gc.collect()
        torch.cuda.empty_cache()
        message = _message(networks, batches, there)
        raise DeviceError(message) from error.with_traceback(None)


def _message(networks: Sequence[Training], batches: EpochSource, there: str) -> str:
    first, others = networks[0], len(networks) - 1
    who = first.title + (f" and {others} networks trained with it" if others else "")
    recipe = first.recipe
    what = f"memory ran out on a step of {who}: {there}"
    batch = _first_batch(batches)
    if batch is None:
        return (
            f"{what}; not even its first batch could be made, so use smaller data or another device"
        )
    size = -(-len(batch) // recipe.accumulate)
    shape = " x ".join(map(str, batch.inputs.shape[1:]))
    what = f"{what}; a batch has {len(batch)} examples of shape {shape}" + (
        f" in micro-batches of {size}" if recipe.accumulate > 1 else ""
    )
    if first.accelerator is not None and first.accelerator.num_processes > 1:
        return f"{what}; set training.accumulate={2 * recipe.accumulate} for half as many at once"
    fits = largest_step(lambda count: _step(first, batch, count), size)
    if fits is None:
        return (
            f"{what}, and not even one example fits; use a smaller network, precision=bfloat16, or "
            "several devices with FSDP"
        )
    if fits == size:
        return (
            f"{what}, which fits by itself: other data take the rest of the memory (the teacher, its "
            "logits, other networks, other programs); free the device of these, or set "
            f"training.accumulate={2 * recipe.accumulate}"
        )
    return (
        f"{what}, and {fits} at once fit; set training.accumulate={-(-len(batch) // fits)}, which gives "
        f"the same result but for BatchNorm, or training.batch_size={fits}"
    )


def largest_step(step: Callable[[int], None], size: int) -> int | None:
    """Return the largest of ``size``, half of it, a quarter … for which a step does not fail.

    A step fails where memory runs out, or where BatchNorm has too few examples. None if all do.
    """
    while size:
        try:
            step(size)
        except (RuntimeError, MemoryError, ValueError) as error:
            if not (ran_out_of_memory(error) or isinstance(error, ValueError)):
                raise
            traceback.clear_frames(error.__traceback__)
            torch.cuda.empty_cache()
        else:
            return size
        size //= 2
    return None


def _first_batch(batches: EpochSource) -> Batch | None:
    try:
        return next(iter(batches.epoch(0)), None)
    except (RuntimeError, MemoryError) as error:
        if not ran_out_of_memory(error):
            raise
        return None


def _step(training: Training, batch: Batch, count: int) -> None:
    """Take a step on some examples that holds what a step of training does, and change no weight."""
    model, recipe = training.model, training.recipe
    weights = [each for each in model.parameters() if each.requires_grad]
    device = weights[0].device
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    moments: list[Tensor] = []
    try:
        for _ in range(1 if recipe.optimizer == "sgd" else 2):
            moments += [torch.empty_like(weight) for weight in weights]
        part = next(batch.split(-(-len(batch) // count))).to(device)
        inputs = own_inputs(part.inputs, input_type(model))
        with nullcontext() if training.accelerator is None else training.accelerator.autocast():
            output = run(model, inputs, part.further)
        known = {part.classes} if part.classes else set[int]()
        logits_of(output, part.labels.shape, lambda: known).float().square().mean().backward()
    finally:
        for weight in weights:
            weight.grad = None
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                if name in buffers:
                    buffer.copy_(buffers[name])
