"""The task of language models: to predict each next token of a sentence.

Shapes: N sentences, T positions, C tokens of the vocabulary, M tokens that are predicted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from distillens.data import Batch, Batches, Examples, Splits
from distillens.data.batches import EpochSource
from distillens.data.tokens import NextTokens, next_tokens
from distillens.errors import DataError
from distillens.forward.evaluation import evaluation_mode
from distillens.measures.statistics.intervals import mean_of_estimates, mean_over_sentences
from distillens.results.base import Estimate
from distillens.results.training import Cell
from distillens.runs.layout import NetworkFiles
from distillens.study.context import StudyContext
from distillens.study.normalisations import Role
from distillens.study.task import Outcomes, Task, TeacherSource
from distillens.supervision import FixedTeacher, LogitCache

BATCH = 64
"""Sentences of a forward pass without gradients."""


@dataclass(frozen=True)
class PredictNextTokens(Task):
    """Networks predict each next token.

    A run stores of each sentence the number of tokens that have the highest logit, the sum of the
    cross-entropies in nats, and the number of tokens, (N, 3). Intervals take sentences as independent.

    Parameters
    ----------
    audited_tokens
        How many tokens of a split an audit compares at most.
    """

    audited_tokens: int
    every_position: ClassVar[bool] = True
    notes: ClassVar[tuple[str, ...]] = (
        "examples are sentences and classes are the tokens of the vocabulary; accuracies and losses are "
        "those of next tokens, and their intervals take sentences as independent",
    )

    @property
    def audit_notes(self) -> tuple[str, ...]:
        """Return which tokens are audited."""
        return (
            f"each token is an example, and its index is sentence · length + position; the first "
            f"sentences of each split are audited, up to {self.audited_tokens:,} tokens; intervals take "
            "tokens as independent and are too narrow where the tokens of a sentence are alike",
        )

    def classes(self, splits: Splits) -> int:
        """Return the size of the vocabulary."""
        return splits.train.vocabularies[0]

    def source(self, batches: Batches) -> EpochSource:
        """Return batches whose labels are the next tokens."""
        return NextTokens(batches)

    def teachers(self, cache: LogitCache) -> TeacherSource:
        """Return a source of teachers that compute their logits for each batch."""
        # The logits of all batches would be too large to keep.
        return lambda digest, module: FixedTeacher(module())

    def file(self, files: NetworkFiles) -> Path:
        """Return the file of the scores of sentences."""
        return files.scores

    def predict(
        self, context: StudyContext, network: nn.Module, examples: Examples, role: Role
    ) -> NDArray:
        """Return the scores of sentences, (N, 3)."""
        return sentence_scores(network, examples)

    def accuracy(self, stored: NDArray, examples: Examples) -> float:
        """Return the share of tokens that have the highest logit."""
        return float(stored[:, 0].sum() / stored[:, 2].sum())

    def count(self, examples: Examples) -> int:
        """Return the number of tokens that follow another."""
        return int((examples.inputs[:, 1:] >= 0).sum())

    def loss(self, stored: NDArray, examples: Examples, form: str) -> float:
        """Return the mean cross-entropy of a token in nats."""
        return float(stored[:, 1].sum() / stored[:, 2].sum())

    def outcomes(self, stored: NDArray, examples: Examples) -> NDArray:
        """Return the scores of sentences, (N, 3)."""
        return stored

    def accuracy_estimate(
        self, cells: Sequence[Cell], outcomes: Outcomes, level: float
    ) -> Estimate:
        """Return the mean with an interval over seeds and sentences."""
        return _over_seeds([outcomes(cell) for cell in cells], 0, level, (0.0, 1.0))

    def gain(
        self, cells: Sequence[Cell], baseline: Sequence[Cell], outcomes: Outcomes, level: float
    ) -> Estimate:
        """Return the mean difference, paired by seed and by sentence."""
        differences = []
        for cell, other in zip(cells, baseline, strict=True):
            scores_N3 = outcomes(cell).copy()
            scores_N3[:, 0] -= outcomes(other)[:, 0]
            differences.append(scores_N3)
        return _over_seeds(differences, 0, level, (-1.0, 1.0))

    def loss_estimate(
        self, cells: Sequence[Cell], outcomes: Outcomes, level: float
    ) -> Estimate | None:
        """Return the mean cross-entropy of a token with an interval over seeds and sentences."""
        return _over_seeds([outcomes(cell) for cell in cells], 1, level, (0.0, np.inf))

    def logits(
        self,
        context: StudyContext,
        files: NetworkFiles,
        network: Callable[[], nn.Module | None],
        split: str,
    ) -> NDArray:
        """Compute the logits of the audited tokens, (M, C)."""
        model = network()
        assert model is not None  # the recipe refuses a teacher that is known by its logits
        return token_logits(model, self._audited(context, split))

    def labels(self, context: StudyContext, split: str) -> tuple[NDArray, NDArray]:
        """Return the audited tokens and their indices, (M,)."""
        return token_labels(self._audited(context, split))

    def _audited(self, context: StudyContext, split: str) -> Examples:
        return first_tokens(getattr(context.splits, split), self.audited_tokens)


def _over_seeds(
    scores: Sequence[NDArray], column: int, level: float, within: tuple[float, float]
) -> Estimate:
    estimates = [mean_over_sentences(one[:, column], one[:, 2], level) for one in scores]
    return mean_of_estimates(estimates, within, level)


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
