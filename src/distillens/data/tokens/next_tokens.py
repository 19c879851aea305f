"""Tokens as examples of a language model: what follows each of them.

Shapes: B examples, T positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from distillens.data.batches import Batch, Batches
from distillens.errors import DataError


def next_tokens(batch: Batch) -> Batch:
    """Return a batch of tokens (B, T) as inputs, labels and mask (B, T − 1): each label comes next."""
    tokens_BT = batch.inputs
    labels = tokens_BT[:, 1:]
    # The classes of the examples are not the tokens that are predicted here.
    return replace(
        batch,
        inputs=tokens_BT[:, :-1],
        labels=labels,
        mask=labels >= 0,
        classes=None,
        rows=None,
        label_range=None,
    )


class NextTokens:
    """The batches of text for a language model; fulfils `EpochSource`.

    Raises
    ------
    DataError
        The inputs are no tokens of one tokenizer, or no sentence has a token that follows another.
    """

    def __init__(self, batches: Batches) -> None:
        examples = batches.examples
        if len(examples.vocabularies) != 1 or examples.inputs.ndim != 2:
            raise DataError(
                "a language model needs text with one tokenizer, these inputs have shape "
                f"{examples.input_shape} and {len(examples.vocabularies)} tokenizers"
            )
        self._batches = batches
        self._counts_N: Tensor = (examples.inputs[:, 1:] >= 0).sum(1)
        if not int(self._counts_N.sum()):
            raise DataError("no sentence has two tokens; raise the tokenizer's length")

    def __len__(self) -> int:
        return len(self._batches)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of an epoch."""
        order = self._batches.order(epoch)
        size, processes = self._batches.batch_size, self._batches.processes
        for place, batch in enumerate(self._batches.epoch(epoch)):
            found = next_tokens(batch)
            assert found.mask is not None
            # A loss is a mean over tokens here: shares of processes are shares of those.
            whole = int(self._counts_N[order[place * size : (place + 1) * size]].sum())
            share = int(found.mask.sum()) * processes / max(1, whole)
            yield replace(found, weight=share if batch.weight else 0.0)
