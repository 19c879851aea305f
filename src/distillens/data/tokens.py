"""Tokens: sentences as rows of numbers, and tokens as examples of a language model.

A tokenizer is trained on the training sentences, or comes with a model.

Shapes: N examples, B examples of a batch, K tokenizers, T positions.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distillens.data.batches import Batch, Batches
from distillens.data.examples import Examples, Splits
from distillens.data.recipe import TokenizerRecipe
from distillens.errors import DataError, one_line

PADDING = -1
"""Behind the last token of a sentence. No tokenizer has this id, so it marks padding unambiguously."""
UNKNOWN, BEGIN, END = "[UNK]", "[CLS]", "[SEP]"


def tokenise(splits: Splits, recipes: Sequence[TokenizerRecipe]) -> Splits:
    """Return the splits with tokens as inputs, (N, T), or (N, K, T) for several tokenizers.

    A tokenizer is trained on the training examples that are left after the splits were made, so
    that no sentence of validation or test has a part in it.

    Raises
    ------
    DataError
        A tokenizer cannot be read or makes nothing of a sentence.
    """
    train_texts = _sentences(splits.train)
    tokenizers = [_tokenizer(recipe, train_texts) for recipe in recipes]
    vocabularies = tuple(each.get_vocab_size() for each in tokenizers)

    width = max(each.truncation["max_length"] for each in tokenizers)

    def with_tokens(examples: Examples, split: str) -> Examples:
        """Return examples with tokens, padded to the longest length allowed."""
        sentences = _sentences(examples)
        tokens_NKT = np.full((len(sentences), len(tokenizers), width), PADDING, dtype=np.int64)
        for place, tokenizer in enumerate(tokenizers):
            for row, found in enumerate(tokenizer.encode_batch_fast(sentences)):
                if not found.ids:
                    raise DataError(
                        f"the tokenizer {place} makes no token of the {split} sentence "
                        f"{sentences[row]!r:.80}; remove it"
                    )
                tokens_NKT[row, place, : len(found.ids)] = found.ids
        tokens = torch.from_numpy(tokens_NKT)
        tokens = tokens[:, 0].contiguous() if len(tokenizers) == 1 else tokens
        return replace(examples, inputs=tokens, vocabularies=vocabularies, sentences=())

    validation = splits.validation
    return replace(
        splits,
        train=with_tokens(splits.train, "train"),
        validation=None if validation is None else with_tokens(validation, "validation"),
        test=with_tokens(splits.test, "test"),
        tokenizers=tuple(each.to_str() for each in tokenizers),
    )


def vocabulary_of(tokenizer: str) -> int | None:
    """Return how many tokens a tokenizer has, given as `Splits.tokenizers` holds it; None if damaged."""
    library = _library()
    try:
        return library.Tokenizer.from_str(tokenizer).get_vocab_size()
    # The library raises its own errors as plain exceptions.
    except Exception:
        return None


def decoded(tokenizer: str, tokens_MT: np.ndarray) -> list[str]:
    """Return the sentences of rows of tokens, as far as the tokens keep them.

    Parameters
    ----------
    tokenizer
        A tokenizer as `Splits.tokenizers` holds it.
    tokens_MT
        Tokens of M sentences, with `PADDING` behind the last one of each.
    """
    reader = _library().Tokenizer.from_str(tokenizer)
    found = []
    for row in tokens_MT:
        text = reader.decode(row[row != PADDING].tolist())
        # Without a decoder the marks of word beginnings remain, and pieces of words are apart.
        found.append(text.replace(" ", "").replace("▁", " ").strip() if "▁" in text else text)
    return found


def _sentences(examples: Examples) -> list[str]:
    return [examples.sentences[index] for index in examples.indices.tolist()]


def _tokenizer(recipe: TokenizerRecipe, sentences: list[str]) -> Any:
    library = _library()
    if recipe.path is None:
        tokenizer = _trained(library, recipe.vocabulary, sentences)
    else:
        tokenizer = _read(library, Path(recipe.path))
    tokenizer.no_padding()
    try:
        tokenizer.enable_truncation(recipe.length)
        tokenizer.encode("a")
    # The library raises plain exceptions for lengths that its special tokens alone fill.
    except Exception as error:
        raise DataError(
            f"a tokenizer cannot cut sentences to {recipe.length} tokens: {one_line(error)}; "
            "raise length"
        ) from None
    return tokenizer


def _library() -> Any:
    try:
        return importlib.import_module("tokenizers")
    except ImportError:
        raise DataError("text needs tokenizers: pip install 'distillens[text]'") from None


def _trained(library: Any, vocabulary: int | None, sentences: list[str]) -> Any:
    # WordPiece is trained with numbers that change from process to process; byte pairs are not.
    tokenizer = library.Tokenizer(library.models.BPE(unk_token=UNKNOWN))
    tokenizer.normalizer = library.normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = library.pre_tokenizers.Sequence(
        [library.pre_tokenizers.Metaspace(), library.pre_tokenizers.Punctuation()]
    )
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[UNKNOWN, BEGIN, END], show_progress=False
    )
    tokenizer.train_from_iterator(sentences, trainer)
    tokenizer.post_processor = library.processors.TemplateProcessing(
        single=f"{BEGIN} $A {END}",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in (BEGIN, END)],
    )
    return tokenizer


def _read(library: Any, path: Path) -> Any:
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise DataError(
            f"no tokenizer {file}; give a folder with a tokenizer.json, as "
            "AutoTokenizer.save_pretrained writes it"
        )
    try:
        return library.Tokenizer.from_file(str(file))
    # A plain Exception, whatever is wrong with the file.
    except Exception as error:
        raise DataError(f"{file} is no readable tokenizer: {one_line(error)[:160]}") from None


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
