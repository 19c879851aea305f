"""Attention of torch.nn, a single function that projects, attends and projects again.

It is rewritten as linear maps, which have a rule, and an attention without parameters.

Shapes: N examples, L query positions, S key positions, E features, H heads.
"""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from distillens.kernel.rules.rule import Rewriting


class Attention(Rewriting):
    """torch.nn.MultiheadAttention and the layers that contain it, without learned or added keys."""

    functions = (functional.multi_head_attention_forward,)
    positional = tuple(signature(functional.multi_head_attention_forward).parameters)

    def rewrite(self, arguments: dict[str, Any]) -> tuple[Any] | None:
        """Return outputs (L, N, E) and, if asked for, the attention weights.

        None for learned or added keys, for active dropout, for unbatched inputs, and for masks whose
        shapes the function itself has to validate.
        """
        bound = signature(self.functions[0]).bind(**arguments)
        bound.apply_defaults()
        given = bound.arguments
        added = ("bias_k", "bias_v", "static_k", "static_v")
        if any(given[name] is not None for name in added) or given["add_zero_attn"]:
            return None
        if given["training"] and given["dropout_p"] > 0:
            return None
        query, key, value = given["query"], given["key"], given["value"]
        if query.ndim != 3 or key.ndim != 3 or key.shape[:2] != value.shape[:2]:
            return None
        heads = given["num_heads"]
        if query.shape[2] != given["embed_dim_to_check"] or query.shape[2] % heads:
            return None
        L, N, E = query.shape
        causal = bool(given["is_causal"]) and given["attn_mask"] is not None
        if given["is_causal"] and not causal:
            return None
        # The function relies on the hint only if no other mask is given.
        causal = causal and given["key_padding_mask"] is None and not given["need_weights"]
        padding = given["key_padding_mask"]
        mask = None
        if not causal and not (given["attn_mask"] is None and padding is None):
            mask = _mask(given["attn_mask"], padding, (N, heads, L, key.shape[0]), query)
            if mask is None:
                return None
        q, k, v = (
            each.reshape(len(each), N, heads, -1).permute(1, 2, 0, 3)
            for each in _projected(query, key, value, given)
        )
        weights = None
        if given["need_weights"]:
            scores = (q * (E // heads) ** -0.5) @ k.mT
            weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
            mixed = weights @ v
            if given["average_attn_weights"]:
                weights = weights.mean(dim=1)
        else:
            mixed = functional.scaled_dot_product_attention(q, k, v, mask, is_causal=causal)
        mixed_LNE = mixed.permute(2, 0, 1, 3).reshape(L, N, E)
        output = functional.linear(mixed_LNE, given["out_proj_weight"], given["out_proj_bias"])
        return ((output, weights),)


def _projected(
    query: Tensor, key: Tensor, value: Tensor, given: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values, by calls that receive whole parameters."""
    weight, bias = given["in_proj_weight"], given["in_proj_bias"]
    each = (query, key, value)
    if not given["use_separate_proj_weight"]:
        # Each distinct input goes through the whole weight: a slice of a weight is another tensor,
        # whose use would not be recorded as a use of the weight.
        distinct = {id(input): input for input in each}
        thirds = {
            key: functional.linear(input, weight, bias).chunk(3, dim=2)
            for key, input in distinct.items()
        }
        q, k, v = (thirds[id(input)][i] for i, input in enumerate(each))
        return q, k, v
    q, k, v = (
        functional.linear(input, given[f"{which}_proj_weight"])
        for input, which in zip(each, "qkv", strict=True)
    )
    if bias is None:
        return q, k, v
    # A linear map of no features returns the three biases at each position.
    nothing = bias.new_empty(len(bias), 0)
    of_query = functional.linear(query[..., :0], nothing, bias)
    of_key = functional.linear(key[..., :0], nothing, bias)
    b_q, (_, b_k, b_v) = of_query.chunk(3, dim=2)[0], of_key.chunk(3, dim=2)
    return q + b_q, k + b_k, v + b_v


def _mask(
    attention: Tensor | None, padding: Tensor | None, shape: tuple[int, int, int, int], like: Tensor
) -> Tensor | None:
    """Return the mask to add to the scores, broadcast to (N, H, L, S); None for other shapes."""
    N, H, L, S = shape
    total = like.new_zeros(())
    if attention is not None:
        if attention.shape == (N * H, L, S):
            attention = attention.view(N, H, L, S)
        elif attention.shape not in ((L, S), (1, L, S)):
            return None
        total = total + _added(attention, like)
    if padding is not None:
        if padding.shape != (N, S):
            return None
        total = total + _added(padding, like).view(N, 1, 1, S)
    return total


def _added(mask: Tensor, like: Tensor) -> Tensor:
    """Return a boolean mask, true at masked positions, or an additive mask as an additive mask."""
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask, float("-inf"))
    return mask.to(like.dtype)
