"""The contract of the layer rules: what a torch function does with its parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from distillens.kernel.factors import Factor, Role


@dataclass(frozen=True)
class Call:
    """One call of a function: its parameters, the examples it got and its other arguments."""

    parameters: dict[Role, Tensor]
    inputs: Tensor
    settings: Any = None


class Rule(ABC):
    """Reads the calls of some torch functions and forms the gradients by their parameters.

    A rule sees functions, not modules: a shared module, a tied weight and a functional use come to
    it in the same way. It is right when its gradients equal those of autograd.
    """

    functions: ClassVar[tuple[Callable[..., Any], ...]]
    positional: ClassVar[tuple[str, ...]]
    """Names of the arguments in their order."""

    @abstractmethod
    def read(self, arguments: dict[str, Any]) -> Call | None:
        """Return the call, given its arguments by name; None if the rule does not cover it."""

    @abstractmethod
    def factor(
        self, call: Call, inputs_B: Tensor, gradients_BC: Tensor, roles: tuple[Role, ...]
    ) -> Factor:
        """Return the gradients of a block.

        Parameters
        ----------
        call
            The call, for its settings.
        inputs_B
            Its inputs, detached, examples first: (B, …).
        gradients_BC
            Gradients of C outputs of the network by the call's output: (B, C, …).
        roles
            The parameters that are asked for.
        """


class Rewriting(ABC):
    """Turns a call that does several things at once into calls of functions that have rules."""

    functions: ClassVar[tuple[Callable[..., Any], ...]]
    positional: ClassVar[tuple[str, ...]]
    """Names of the arguments in their order."""

    @abstractmethod
    def rewrite(self, arguments: dict[str, Any]) -> tuple[Any] | None:
        """Return what the call returns, alone in a tuple; None if it is not rewritten."""
