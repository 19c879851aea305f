"""The contract of the layer rules: what a torch function does with its parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from distillens.kernel.factors.cost import Operation
from distillens.kernel.factors.factor import Factor, Role


@dataclass(frozen=True)
class Call:
    """One call of a function: its parameters, the inputs that hold the examples, and settings."""

    parameters: dict[Role, Tensor]
    inputs: Tensor
    settings: Any = None
    """Whatever else `Rule.factor` needs to know about the call."""


def weight_and_bias(arguments: dict[str, Any]) -> dict[Role, Tensor]:
    """Return the weight and the bias among a call's arguments, if they are given."""
    roles: tuple[Role, ...] = ("weight", "bias")
    return {role: arguments[role] for role in roles if arguments.get(role) is not None}


class _Handler(ABC):
    """Handles the calls of some torch functions."""

    functions: ClassVar[tuple[Callable[..., Any], ...]]
    positional: ClassVar[tuple[str, ...]]
    """Names of the functions' positional arguments, in order."""
    operations: ClassVar[tuple[Operation, ...]] = ()
    """Operations whose speeds the costs of the rule's factors refer to by name."""


class Rule(_Handler):
    """Reads the calls of some torch functions and forms the gradients by their parameters.

    A rule sees functions, not modules. A shared module, a tied weight and a functional call therefore
    look the same to it. A rule is right if its gradients equal those of autograd, which is verified at
    run time for each network, parameter by parameter, on a few examples in float64; parameters for
    which they differ are left to ``torch.func``.
    """

    @abstractmethod
    def read(self, arguments: dict[str, Any]) -> Call | None:
        """Return the call, given its arguments by name; None if the rule does not cover it."""

    @abstractmethod
    def factor(
        self, call: Call, inputs_B: Tensor, gradients_BC: Tensor, roles: tuple[Role, ...]
    ) -> Factor:
        """Return the gradients of a block of B examples.

        Parameters
        ----------
        call
            The call that `read` returned, for its settings.
        inputs_B
            The call's inputs, detached, with the examples along the first axis: (B, …).
        gradients_BC
            Gradients of C outputs of the network by the call's output: (B, C, …).
        roles
            The parameters whose gradients are asked for.
        """


class Rewriting(_Handler):
    """Replaces a call that does several things at once by calls of functions that have rules."""

    @abstractmethod
    def rewrite(self, arguments: dict[str, Any]) -> tuple[Any] | None:
        """Return a tuple that holds the call's result; None if the call is not rewritten."""
