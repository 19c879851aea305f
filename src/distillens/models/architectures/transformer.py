"""Small transformers for text: a classifier of sentences, and a model of the next token.

Tokens are whole numbers, -1 behind the last one of a sentence. Shapes: B examples, K tokenizers,
T positions, E features, H heads, V tokens of the vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from distillens.errors import ModelError
from distillens.forward.sequences import tokens_of as tokens_of


def text_shape(
    model: str, input_shape: tuple[int, ...], vocabularies: tuple[int, ...], tokenizer: int
) -> tuple[int, int]:
    """Return (T, V) of a tokenizer, or raise ModelError for inputs that are no text."""
    if not vocabularies:
        raise ModelError(
            f"{model} works on text, the inputs have shape {input_shape} and are no tokens; "
            "use data.source text"
        )
    if not 0 <= tokenizer < len(vocabularies):
        raise ModelError(
            f"{model} asks for tokenizer {tokenizer}; the data have "
            f"{len(vocabularies)}, counted from 0"
        )
    return input_shape[-1], vocabularies[tokenizer]


class Layer(nn.Module):
    """Attention and a GELU layer of four times the width, each normalised before and added."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention = nn.LayerNorm(width)
        self.project = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.before_inner = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x_BTE: Tensor, seen: Tensor) -> Tensor:
        B, T, E = x_BTE.shape
        projected = self.project(self.before_attention(x_BTE))
        q, k, v = projected.view(B, T, 3, self.heads, E // self.heads).permute(2, 0, 3, 1, 4)
        mixed_BHTe = scaled_dot_product_attention(q, k, v, attn_mask=seen)
        mixed_BTE = mixed_BHTe.transpose(1, 2).reshape(B, T, E)
        x_BTE = x_BTE + self.drop(self.mix(mixed_BTE))
        return x_BTE + self.drop(self.narrow(gelu(self.widen(self.before_inner(x_BTE)))))


class Trunk(nn.Module):
    """Tokens and their places, embedded, through layers to normalised features.

    Raises
    ------
    ModelError
        A size is below one, or the heads do not share the width evenly.
    """

    def __init__(
        self,
        vocabulary: int,
        length: int,
        layers: int = 2,
        width: int = 128,
        heads: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if min(layers, width, heads) < 1 or width % heads:
            raise ModelError(
                f"a transformer needs layers, width and heads of at least 1, the width a multiple of "
                f"the heads; got {layers} layers, width {width}, {heads} heads"
            )
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(length, width)
        self.drop = nn.Dropout(dropout)
        self.layers = nn.ModuleList(Layer(width, heads, dropout) for _ in range(layers))
        self.last = nn.LayerNorm(width)
        for table in (self.tokens, self.places):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, tokens_BT: Tensor, *, causal: bool) -> Tensor:
        B, T = tokens_BT.shape
        there_BT = tokens_BT >= 0
        seen = there_BT[:, None, None, :]
        if causal:
            earlier = torch.ones(T, T, dtype=torch.bool, device=tokens_BT.device).tril()
            seen = seen & earlier
        # Written out for each example, so that every lookup belongs to one.
        places_BT = torch.arange(T, device=tokens_BT.device).expand(B, T)
        x_BTE = self.drop(self.tokens(tokens_BT.clamp_min(0)) + self.places(places_BT))
        for layer in self.layers:
            x_BTE = layer(x_BTE, seen)
        return self.last(x_BTE)


class Encoder(nn.Module):
    """A classifier of sentences: the mean of the features over the tokens that are not padding.

    ``tokenizer`` is the row of (B, K, T) inputs that it reads; ``sizes`` are those of `Trunk`.
    """

    def __init__(
        self, vocabulary: int, length: int, outputs: int, *, tokenizer: int = 0, **sizes: Any
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.trunk = Trunk(vocabulary, length, **sizes)
        self.head = nn.Linear(self.trunk.last.normalized_shape[0], outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        tokens_BT = tokens_of(inputs, self.tokenizer)
        features_BTE = self.trunk(tokens_BT, causal=False)
        there_BT1 = (tokens_BT >= 0).to(features_BTE)[..., None]
        return self.head((features_BTE * there_BT1).sum(1) / there_BT1.sum(1).clamp_min(1))


class LanguageModel(nn.Module):
    """Logits (B, T, V) of each next token, from the tokens up to it; ``sizes`` are those of `Trunk`."""

    def __init__(self, vocabulary: int, length: int, **sizes: Any) -> None:
        super().__init__()
        self.trunk = Trunk(vocabulary, length, **sizes)
        self.head = nn.Linear(self.trunk.last.normalized_shape[0], vocabulary)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        return self.head(self.trunk(tokens_BT, causal=True))
