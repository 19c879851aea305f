"""What a network says of examples: logits on the un-augmented pictures."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from distillens.data.batches import Batch, Batches, Normalisation
from distillens.data.examples import Examples
from distillens.data.outputs import logits_of
from distillens.forward import evaluate, evaluation_mode

BATCH = 512


def predict(
    model: nn.Module,
    examples: Examples,
    normalisation: Normalisation | None,
    *,
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """Return (N, C) float32 logits in evaluation mode; every submodule's mode is left as it was."""
    batches = Batches(examples, BATCH, normalisation=normalisation, seed=None, device=device)
    with evaluation_mode(model):
        rows = [_logits(model, batch).float() for batch in batches.epoch(0)]
    return torch.cat(rows).cpu().numpy()


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
