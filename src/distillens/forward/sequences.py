"""Forward passes of text models from transformers, independent of how sentences are padded.

Shapes: B sentences, K tokenizers, T positions, C classes or tokens of the vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from distillens.errors import ModelError

NOT_FURTHER = frozenset({"input_ids", "attention_mask", "labels"})
"""Arguments of a forward method that are never passed on as further inputs."""

MASK_IS_NOT_ENOUGH = frozenset(
    {"canine", "convbert", "fnet", "funnel", "nystromformer", "xlnet", "yoso"}
)
"""Architectures whose outputs depend on padding in spite of the attention mask: they mix positions by
a Fourier transform, a convolution, pooling or landmarks, or read the last position. Sentences of one
length are run together, without padding."""


class SequenceModel(nn.Module):
    """A text model of transformers that takes padded tokens and returns its logits.

    The logits of a sentence do not depend on the other sentences of its batch: they are those that the
    network gives for the sentence alone. Padding is filled with the network's own ``pad_token_id``.
    Decoders that classify read the last token that differs from it; without a ``pad_token_id`` they
    read the last token of each sentence. Architectures that do not fully respect an attention mask
    are run on sentences of one length at a time; `torch.export` cannot export them.

    Parameters
    ----------
    network
        A network of transformers whose output has ``logits``, for example from
        ``AutoModelForSequenceClassification`` or ``AutoModelForCausalLM``.
    tokenizer
        Row of the (B, K, T) inputs that the network reads.

    Examples
    --------
    >>> import transformers
    >>> config = transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=9, num_labels=3)
    >>> model = SequenceModel(transformers.GPT2ForSequenceClassification(config)).eval()
    >>> model(torch.tensor([[4, 7, 2], [5, -1, -1]])).shape
    torch.Size([2, 3])
    """

    def __init__(self, network: nn.Module, tokenizer: int = 0) -> None:
        super().__init__()
        self.network = network
        self.tokenizer = tokenizer

    def forward(self, inputs: Tensor, **further: Tensor) -> Tensor:
        """Return logits (B, C), or (B, T, C) of a model of tokens.

        Parameters
        ----------
        inputs : Tensor
            (B, T) or (B, K, T) int64 tokens; -1 marks padding.
        **further : Tensor
            Further inputs by name, for example ``token_type_ids`` (B, T). Those that the network's
            ``forward`` does not take are left out.

        Raises
        ------
        ModelError
            A token is outside the network's vocabulary (on a CPU), or the network cannot read one of
            the sentences.
        """
        return sequence_logits(self.network, tokens_of(inputs, self.tokenizer), further)


def tokens_of(inputs: Tensor, tokenizer: int) -> Tensor:
    """Return (B, T) tokens of one tokenizer out of (B, T) or (B, K, T)."""
    return inputs if inputs.ndim == 2 else inputs[:, tokenizer]


def run(module: nn.Module, inputs: Tensor, further: Mapping[str, Tensor] | None = None) -> Any:
    """Call a network on the inputs of a batch.

    A text model of transformers is called as :class:`SequenceModel` calls it and returns logits; any
    other module is called with the inputs as its first argument.

    Parameters
    ----------
    module
        The network.
    inputs : Tensor
        (B, …), or tokens in which -1 marks padding: (B, T), or (B, choices, T) of multiple choice.
    further
        Further inputs by name, (B, …) each; the network gets those that its ``forward`` takes. None
        where the batch comes from a source that has no such inputs.

    Raises
    ------
    ModelError
        Tokens for a bare text model end in its ``pad_token_id``, so that it is not known whether
        they are padding.
    """
    if is_text_model(module) and inputs.ndim in (2, 3) and not inputs.is_floating_point():
        if inputs.ndim == 3:
            # Choices (B, choices, T), which the network runs as B · choices sentences.
            return _padded(module, inputs, taken(module, further or {}))
        if further is None:
            check_marked(module, inputs)
        return sequence_logits(module, inputs, further)
    return module(inputs, **taken(module, further or {}))


def is_text_model(module: nn.Module) -> bool:
    """Return whether a module is a model of transformers, or of peft around one, that reads tokens."""
    return (
        hasattr(getattr(module, "config", None), "model_type")
        and getattr(module, "main_input_name", "input_ids") == "input_ids"
        and "input_ids" in inspect.signature(module.forward).parameters
    )


def taken(module: nn.Module, further: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return those of some inputs that a network's ``forward`` takes by name.

    A network that distinguishes a single token type gets no ``token_type_ids``: the only ids that it
    could look up are the zeros that it assumes without them.
    """
    if not further:
        return {}
    network = module.network if isinstance(module, SequenceModel) else module
    names = set(inspect.signature(network.forward).parameters) - NOT_FURTHER
    if getattr(getattr(network, "config", None), "type_vocab_size", None) == 1:
        names.discard("token_type_ids")
    return {name: values for name, values in further.items() if name in names}


def sequence_logits(
    network: nn.Module, tokens_BT: Tensor, further: Mapping[str, Tensor] | None = None
) -> Tensor:
    """Return the logits of a text model of transformers, those of each sentence alone.

    Parameters
    ----------
    network
        A model of transformers, or of peft around one.
    tokens_BT : Tensor
        (B, T) int64 tokens; -1 marks padding.
    further
        Further inputs by name; the network gets those that its ``forward`` takes.

    Returns
    -------
    (B, C) logits, or (B, T, C) where the network has an output for every token. Outputs at padding
    are arbitrary.
    """
    others = taken(network, further or {})
    exported = torch.compiler.is_exporting()
    # A program takes rows as `tokenise` pads them, so sorting is left out of it.
    order_BT = None if exported else order_of(tokens_BT >= 0)
    if order_BT is not None:
        tokens_BT = tokens_BT.gather(1, order_BT)
        others = {name: reordered(values, order_BT) for name, values in others.items()}
    kind = str(getattr(_config(network), "model_type", ""))
    reads_end = _reads_end(network)
    if kind in MASK_IS_NOT_ENOUGH or reads_end:
        if exported:
            raise ModelError(
                f"a {kind} network is run on sentences of one length at a time, which an exported "
                "program cannot do; export another architecture, or the safetensors format alone"
            )
        logits = _by_group(network, tokens_BT, others, reads_end)
    else:
        logits = _padded(network, tokens_BT, others)
    if order_BT is not None and logits.ndim == 3 and logits.shape[:2] == tokens_BT.shape:
        logits = reordered(logits, order_BT.argsort(1))
    return logits


def order_of(real_BT: Tensor) -> Tensor:
    """Return (B, T) positions, those of tokens first and those of padding last, in their order."""
    return (~real_BT).to(torch.uint8).argsort(dim=1, stable=True)


def reordered(values: Tensor, order_BT: Tensor) -> Tensor:
    """Return (B, T, …) values with their positions in another order; others as they are."""
    if values.shape[:2] != order_BT.shape:
        return values
    index = order_BT.reshape(*order_BT.shape, *[1] * (values.ndim - 2)).expand_as(values)
    return values.gather(1, index)


@contextmanager
def filled(network: nn.Module, tokens_BT: Tensor) -> Iterator[Tensor]:
    """Give tokens whose padding is filled as the network's configuration expects it.

    Classifying decoders find the last token of a sentence by its difference from ``pad_token_id``. If
    the configuration has none within the vocabulary, each row is filled with a token that differs
    from its last one, and the configuration names that one inside the block.

    Parameters
    ----------
    network
        The network that will read the tokens; not a wrapper around it.
    tokens_BT : Tensor
        (B, T) int64 tokens, -1 behind the last one.
    """
    padding_BT = tokens_BT < 0
    if (pad := padding_token(network)) is not None:
        yield tokens_BT.masked_fill(padding_BT, pad)
        return
    last_B1 = ((~padding_BT).sum(1, keepdim=True) - 1).clamp_min(0)
    filler_B1 = (tokens_BT.gather(1, last_B1) == 0).to(tokens_BT.dtype)
    tokens_BT = torch.where(padding_BT, filler_B1, tokens_BT)
    attributes = getattr(_config(network), "__dict__", {})
    if "pad_token_id" not in attributes:
        yield tokens_BT
        return
    # Not by setattr: configurations accept whole numbers alone, and this is one for each row.
    before = attributes["pad_token_id"]
    attributes["pad_token_id"] = filler_B1
    try:
        yield tokens_BT
    finally:
        attributes["pad_token_id"] = before


def padding_token(network: nn.Module) -> int | None:
    """Return the network's ``pad_token_id``; None if it has none within its vocabulary."""
    pad = getattr(_config(network), "pad_token_id", None)
    return pad if isinstance(pad, int) and 0 <= pad < vocabulary_size(network) else None


def required_end(model: nn.Module) -> int | None:
    """Return the token that every sentence of a :class:`SequenceModel` must contain.

    Classifiers with an encoder and a decoder read the position of the last ``eos_token_id``. None for
    other networks.
    """
    if not isinstance(model, SequenceModel) or not _reads_end(model.network):
        return None
    end = getattr(_config(model.network), "eos_token_id", None)
    return end if isinstance(end, int) else None


def vocabulary_size(network: nn.Module) -> int:
    """Return how many tokens a text model can look up."""
    try:
        embedding: Any = network.get_input_embeddings()  # type: ignore[operator]
        # Not the shape of its weight, which may be sharded.
        return int(embedding.num_embeddings)
    except (AttributeError, NotImplementedError):
        return int(getattr(_config(network), "vocab_size", None) or 0)


def _config(network: nn.Module) -> Any:
    config: Any = getattr(network, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _padded(
    network: nn.Module,
    tokens_BT: Tensor,
    others: Mapping[str, Tensor],
    *,
    unpadded: bool = False,
) -> Tensor:
    real_BT = (tokens_BT >= 0).long()
    takes_mask = "attention_mask" in inspect.signature(network.forward).parameters
    mask = {"attention_mask": real_BT} if takes_mask else {}
    try:
        # Sentences of one length have no padding, and encoder-decoders need a number as padding.
        with nullcontext(tokens_BT) if unpadded else filled(network, tokens_BT) as ids_BT:
            return network(input_ids=ids_BT, **mask, **others).logits
    except IndexError as error:
        size = vocabulary_size(network)
        if tokens_BT.device.type == "cpu" and size and int(tokens_BT.max()) >= size:
            raise ModelError(
                f"token {int(tokens_BT.max())} is outside the vocabulary of the "
                f"{type(network).__name__}, which has {size} tokens; give it the tokens of its own "
                "tokenizer"
            ) from None
        raise ModelError(
            f"the {type(network).__name__} cannot read {tokens_BT.shape[1]} tokens: {error}"
        ) from None


def _reads_end(network: nn.Module) -> bool:
    # Classifiers of encoder-decoders read the last eos and count it in the whole batch.
    named = any("ForSequenceClassification" in each.__name__ for each in type(network).__mro__)
    return named and bool(getattr(_config(network), "is_encoder_decoder", False))


def _by_group(
    network: nn.Module, tokens_BT: Tensor, others: Mapping[str, Tensor], reads_end: bool
) -> Tensor:
    """Return the logits of sentences that are run together only where padding does not matter."""
    B, T = tokens_BT.shape
    lengths_B = (tokens_BT >= 0).sum(1)
    end = getattr(_config(network), "eos_token_id", None)
    ends_B = torch.zeros_like(lengths_B)
    if reads_end and isinstance(end, int):
        ends_B = (tokens_BT == end).sum(1)
        if not bool(ends_B.all()):
            raise ModelError(
                f"the {type(network).__name__} reads the last token {end} (eos_token_id) of a sentence, "
                f"and row {int(ends_B.argmin())} of the batch has none; use a tokenizer that adds it"
            )
    # Padding with the same token would be counted.
    by_length = not reads_end or padding_token(network) in (None, end)
    keys_B2 = torch.stack([lengths_B * by_length, ends_B], dim=1)
    groups, group_B = keys_B2.unique(dim=0, return_inverse=True)
    parts, rows = [], [(group_B == group).nonzero()[:, 0] for group in range(len(groups))]
    for index in rows:
        width = max(1, int(lengths_B[index].max()))
        further = {
            name: (values[index][:, :width] if values.shape[:2] == (B, T) else values[index])
            for name, values in others.items()
        }
        unpadded = bool((lengths_B[index] == width).all())
        logits = _padded(network, tokens_BT[index, :width], further, unpadded=unpadded)
        if logits.ndim == 3:
            logits = nn.functional.pad(logits, (0, 0, 0, T - logits.shape[1]))
        parts.append(logits)
    return torch.cat(parts)[torch.cat(rows).argsort()]


def check_marked(network: nn.Module, tokens_BT: Tensor) -> None:
    """Refuse tokens for a bare text model of which it is not known whether they are padding.

    Raises
    ------
    ModelError
        They end in the network's ``pad_token_id``, and no padding is marked by -1.
    """
    pad = padding_token(network)
    if pad is None:
        return
    ends_in_padding = (tokens_BT[:, -1] == pad).any() & (tokens_BT >= 0).all()
    if bool(ends_in_padding):
        raise ModelError(
            f"tokens end in {pad}, the pad_token_id of the {type(network).__name__}, and without an "
            "attention mask it is not known whether they are padding; set padding to -1, or wrap "
            "the network in distillens.models.SequenceModel if they are part of the sentence"
        )
