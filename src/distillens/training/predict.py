"""Predictions: logits of a network on un-augmented inputs."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from distillens.data.batches import Batch, Batches
from distillens.data.examples import Examples
from distillens.data.normalisation import Normalisation
from distillens.data.outputs import logits_of
from distillens.forward.device_errors import device_errors, ran_out_of_memory
from distillens.forward.evaluation import evaluate, evaluation_mode

BATCH = 512


def predict(
    model: nn.Module,
    examples: Examples,
    normalisation: Normalisation | None,
    *,
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """Return (N, C) float32 logits in evaluation mode; every submodule's mode is left as it was.

    Where `BATCH` examples at once do not fit into the memory of the device, half as many are tried,
    and so on.

    Raises
    ------
    DeviceError
        The device does not exist, or its memory does not suffice for one example.
    """
    batches = Batches(examples, BATCH, normalisation=normalisation, seed=None, device=device)
    size = min(BATCH, len(examples))
    shape = " x ".join(map(str, examples.input_shape))
    advice = "compute on another device, or with a smaller network"
    with evaluation_mode(model), device_errors(f"the logits of one example of {shape}", advice):
        while True:
            parts = np.split(np.arange(len(examples)), range(size, len(examples), size))
            try:
                rows = [_logits(model, batches.take(part, 0)).float() for part in parts]
                return torch.cat(rows).cpu().numpy()
            except (RuntimeError, MemoryError) as error:
                if size == 1 or not ran_out_of_memory(error):
                    raise
            # Behind the block, as the frames of the error hold what did not fit.
            size //= 2
            torch.cuda.empty_cache()


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    known = {batch.classes} if batch.classes else set()
    return logits_of(evaluate(model, batch.inputs), batch.labels.shape, lambda: known)


def accuracy(logits_NC: np.ndarray, labels_N: np.ndarray) -> tuple[float, int]:
    """Return the share of right predictions and their number. One output: class 1 if positive."""
    right = int(is_right(logits_NC, labels_N).sum())
    return right / len(labels_N), right


def is_right(logits_NC: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """Return for each example whether its prediction is right, (N,). One output: class 1 if positive."""
    one = logits_NC.shape[1] == 1
    guess = logits_NC[:, 0] > 0 if one else logits_NC.argmax(1)
    return guess == labels_N
