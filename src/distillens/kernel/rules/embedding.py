"""Embeddings: rows of a table that integers select."""

from __future__ import annotations

from inspect import signature
from typing import Any

from torch import Tensor
from torch.nn import functional

from distillens.errors import KernelError
from distillens.kernel.factors.factor import Factor, Role
from distillens.kernel.factors.tokens import TokenGradients
from distillens.kernel.rules.rule import Call, Rule


class Embedding(Rule):
    """y = W[token]; the axes of the tokens after the examples are positions."""

    functions = (functional.embedding,)
    positional = tuple(signature(functional.embedding).parameters)

    def read(self, arguments: dict[str, Any]) -> Call | None:
        """Return the call; None if it also changes its weight, as ``max_norm`` does.

        Raises
        ------
        KernelError
            Autograd does not return the gradients of the function.
        """
        weight: Tensor = arguments["weight"]
        if arguments.get("scale_grad_by_freq") and weight.requires_grad:
            raise KernelError(
                "an embedding has scale_grad_by_freq=True, which changes its gradients but not "
                "what it computes; build the model with False"
            )
        if arguments.get("max_norm") is not None:
            return None
        padding = arguments.get("padding_idx")
        if padding is not None and padding < 0:
            padding += len(weight)
        return Call({"weight": weight}, arguments["input"], padding)

    def factor(
        self, call: Call, inputs_B: Tensor, gradients_BC: Tensor, roles: tuple[Role, ...]
    ) -> Factor:
        """Return the tokens and the gradients by the rows that they look up."""
        tokens_BT = inputs_B.reshape(len(inputs_B), -1)
        shape = (*gradients_BC.shape[:2], 1, -1, gradients_BC.shape[-1])
        gradients_BC1Tg = gradients_BC.reshape(shape)
        if call.settings is not None:
            # torch sets the gradient by the padding row to zero, although the outputs depend on it.
            counts_BT = (tokens_BT != call.settings).to(gradients_BC)
            gradients_BC1Tg = gradients_BC1Tg * counts_BT[:, None, None, :, None]
        return TokenGradients(tokens_BT, gradients_BC1Tg, len(call.parameters["weight"]))
