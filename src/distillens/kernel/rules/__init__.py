"""Layer rules: how the gradients by a layer's parameters are formed, one file for each kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from distillens.errors import KernelError
from distillens.kernel.factors.cost import Operation
from distillens.kernel.rules.attention import Attention
from distillens.kernel.rules.convolution import Convolution
from distillens.kernel.rules.embedding import Embedding
from distillens.kernel.rules.linear import Linear
from distillens.kernel.rules.normalisation import BatchNorm, GroupNorm, LayerNorm, RMSNorm
from distillens.kernel.rules.rule import Call, Rewriting, Rule

RULES: dict[Callable[..., Any], Rule | Rewriting] = {}
"""The rule or rewriting of each torch function that has one; see `register`."""


def register(rule: Rule | Rewriting) -> None:
    """Let a rule or a rewriting handle the calls of its functions in every kernel from now on.

    Raises
    ------
    KernelError
        One of the functions has a rule already.
    """
    for function in rule.functions:
        if function in RULES:
            raise KernelError(
                f"{function.__name__} already has the rule {type(RULES[function]).__name__}; "
                "remove it from distillens.kernel.rules.RULES before registering another"
            )
    RULES.update(dict.fromkeys(rule.functions, rule))


def operations() -> Iterator[Operation]:
    """Yield the operations whose speeds the costs of registered rules refer to."""
    for rule in dict.fromkeys(RULES.values()):
        yield from rule.operations


for _each in (
    *(Linear(), Convolution(), Embedding(), Attention()),
    *(BatchNorm(), GroupNorm(), LayerNorm(), RMSNorm()),
):
    register(_each)

__all__ = ["RULES", "Call", "Rewriting", "Rule", "operations", "register"]
