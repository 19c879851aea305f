"""What a language model says of the tokens of some sentences, and how sure a mean over them is.

Shapes: N sentences, T positions, C tokens of the vocabulary, M tokens that count.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from distillens.data import Batch, Batches, Examples
from distillens.data.tokens.next_tokens import next_tokens
from distillens.errors import DataError
from distillens.results.base import Estimate, Interval

BATCH = 64
"""Sentences of a forward pass without gradients."""
NORMAL = 1.959964


def first_tokens(examples: Examples, most: int) -> Examples:
    """Return as many of the first sentences as have no more than so many next tokens together."""
    counts_N = (examples.inputs[:, 1:] >= 0).sum(1)
    kept = int((counts_N.cumsum(0) <= most).sum())
    if not kept:
        raise DataError(
            f"the first sentence has {int(counts_N[0])} tokens, more than the {most} to audit"
        )
    return examples.take(slice(0, kept))


@torch.no_grad()
def token_logits(
    model: torch.nn.Module, examples: Examples
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what a language model says of every next token, in evaluation mode.

    Returns
    -------
    Logits (M, C) float32, the tokens that came (M,), and their indices (M,): sentence · T + place, with
    the sentence's stable index.
    """
    model.eval()
    logits, labels, index = [], [], []
    width = examples.input_shape[0]
    for batch in _in_order(model, examples):
        each = next_tokens(batch)
        assert each.mask is not None
        mask = each.mask.cpu()
        logits.append(model(each.inputs).float().cpu()[mask])
        labels.append(each.labels.cpu()[mask])
        places = torch.arange(1, width).expand_as(mask)
        index.append((batch.indices[:, None] * width + places)[mask])
    return (
        torch.cat(logits).numpy(),
        torch.cat(labels).numpy(),
        torch.cat(index).numpy(),
    )


@torch.no_grad()
def evaluate_tokens(model: torch.nn.Module, examples: Examples) -> tuple[Estimate, Estimate]:
    """Return the loss and the accuracy of a token."""
    model.eval()
    losses, right, counts = [], [], []
    for batch in _in_order(model, examples):
        each = next_tokens(batch)
        assert each.mask is not None
        logits = model(each.inputs)
        said = logits.log_softmax(-1).gather(-1, each.labels.clamp_min(0)[..., None])[..., 0]
        losses.append((-said * each.mask).sum(1))
        right.append(((logits.argmax(-1) == each.labels) & each.mask).sum(1))
        counts.append(each.mask.sum(1))
    losses_N, right_N, counts_N = (
        torch.cat(parts).double().cpu().numpy() for parts in (losses, right, counts)
    )
    return mean_over_sentences(losses_N, counts_N), mean_over_sentences(right_N, counts_N)


def _in_order(model: torch.nn.Module, examples: Examples) -> Iterator[Batch]:
    device = next(model.parameters()).device
    return Batches(examples, BATCH, seed=None, device=device).epoch(0)


def mean_over_sentences(sums_N: np.ndarray, counts_N: np.ndarray) -> Estimate:
    """Return Σ sums / Σ counts with an interval that takes sentences as independent.

    The variance of a ratio by linearisation (Cochran, Sampling Techniques, 1977, section 6.3).
    """
    mean = float(sums_N.sum() / counts_N.sum())
    if len(sums_N) < 2:
        return Estimate(mean)
    apart = sums_N - mean * counts_N
    share = len(sums_N) / (len(sums_N) - 1)
    error = NORMAL * float(np.sqrt(share * (apart**2).sum())) / float(counts_N.sum())
    method = f"normal, over {len(sums_N)} sentences"
    return Estimate(mean, Interval(mean - error, mean + error, 0.95, method))


def count_tokens(examples: Examples) -> int:
    """Return how many tokens come next to others."""
    return int((examples.inputs[:, 1:] >= 0).sum())
