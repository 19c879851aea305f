"""Outputs of a language model on the tokens of sentences.

Shapes: N sentences, T positions, C tokens of the vocabulary, M tokens that follow another.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from distillens.data import Batch, Batches, Examples
from distillens.data.tokens import next_tokens
from distillens.errors import DataError
from distillens.forward.evaluation import evaluation_mode

BATCH = 64
"""Sentences of a forward pass without gradients."""


def first_tokens(examples: Examples, most: int) -> Examples:
    """Return the first sentences whose next tokens together are at most ``most``.

    Raises
    ------
    DataError
        The first sentence has more.
    """
    counts_N = (examples.inputs[:, 1:] >= 0).sum(1)
    kept = int((counts_N.cumsum(0) <= most).sum())
    if not kept:
        raise DataError(
            f"the first sentence has {int(counts_N[0])} tokens, more than the {most} of "
            "audited_tokens; raise audited_tokens"
        )
    return examples.take(slice(0, kept))


def token_labels(examples: Examples) -> tuple[NDArray, NDArray]:
    """Return all next tokens in their order, and their indices, (M,).

    The index of a token is i · T + t, with the stable index i of the sentence and the position t.
    """
    labels_NT = examples.inputs[:, 1:]
    mask_NT = labels_NT >= 0
    width = examples.input_shape[0]
    places_NT = examples.indices[:, None] * width + torch.arange(1, width)
    return labels_NT[mask_NT].numpy(), places_NT[mask_NT].numpy()


@torch.no_grad()
def token_logits(model: nn.Module, examples: Examples) -> NDArray:
    """Return the logits of a language model for every next token, (M, C) float32."""
    with evaluation_mode(model):
        found = [model(each.inputs).float()[each.mask].cpu() for each in _in_order(model, examples)]
    return torch.cat(found).numpy()


@torch.no_grad()
def sentence_scores(model: nn.Module, examples: Examples) -> NDArray:
    """Return for each sentence three sums over its next tokens, (N, 3) float64.

    They are the number of tokens that have the highest logit, the cross-entropies in nats, and the
    number of tokens.
    """
    found = []
    with evaluation_mode(model):
        for each in _in_order(model, examples):
            logits, mask = model(each.inputs).float(), each.mask
            assert mask is not None
            chosen = each.labels.clamp_min(0)[..., None]
            losses = -logits.log_softmax(-1).gather(-1, chosen)[..., 0]
            right = (logits.argmax(-1) == each.labels) & mask
            sums = [right.sum(1), (losses * mask).double().sum(1), mask.sum(1)]
            found.append(torch.stack([one.double().cpu() for one in sums], 1))
    return np.concatenate([one.numpy() for one in found])


def _in_order(model: nn.Module, examples: Examples) -> Iterator[Batch]:
    device = next(model.parameters()).device
    for batch in Batches(examples, BATCH, seed=None, device=device).epoch(0):
        yield next_tokens(batch)
