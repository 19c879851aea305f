"""Recording every use of a network's parameters: the calls of functions that have a rule.

The calls are recorded where torch dispatches its functions. No hook is put on the model, and a shared
module, a tied weight or a functional call is recorded like any other call.

Shapes: B examples, C outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from distillens.errors import KernelError
from distillens.forward.device_errors import ran_out_of_memory
from distillens.kernel.factors.factor import Factor, Role
from distillens.kernel.rules import RULES, Call, Rewriting, Rule
from distillens.kernel.tracing.isolated import IsolatedNetwork
from distillens.kernel.tracing.network import copied


@dataclass(frozen=True)
class Use:
    """One recorded call: its rule, its parameters by name, and its output in the graph."""

    rule: Rule
    call: Call
    names: dict[Role, str]
    """The names of the parameters to differentiate by, by their role in this call."""
    output: Tensor


@dataclass(frozen=True)
class Layout:
    """The axis of a call's inputs or output that holds the examples.

    The axis holds ``inner`` entries of each example: next to each other, or, if ``minor``, one for each
    run through the examples.
    """

    axis: int
    inner: int = 1
    minor: bool = False

    def examples_first(self, tensor: Tensor) -> Tensor:
        """Return the tensor with the examples along its first axis, (B, …)."""
        if self.inner == 1:
            return tensor.movedim(self.axis, 0)
        before, after = tensor.shape[: self.axis], tensor.shape[self.axis + 1 :]
        examples = tensor.shape[self.axis] // self.inner
        both = (self.inner, examples) if self.minor else (examples, self.inner)
        split = tensor.reshape(*before, *both, *after)
        return split.movedim(self.axis + self.minor, 0)


class Recorder(TorchFunctionMode):
    """Records the calls that use a tracer's parameters while it is entered."""

    def __init__(self, tracer: Tracer, examples: int) -> None:
        super().__init__()
        self._tracer, self._examples = tracer, examples
        self.uses: list[Use] = []
        self.versions: list[int] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call the function, and record the call if a rule covers it and it uses a parameter."""
        kwargs = kwargs or {}
        rule = RULES.get(func)
        if rule is None:
            return func(*args, **kwargs)
        arguments = dict(zip(rule.positional, args, strict=False)) | kwargs
        if isinstance(rule, Rewriting):
            with self:
                rewritten = rule.rewrite(arguments)
            return func(*args, **kwargs) if rewritten is None else rewritten[0]
        call = rule.read(arguments)
        output = func(*args, **kwargs)
        if call is None:
            return output
        known = self._tracer.names
        names: dict[Role, str] = {
            role: known[id(tensor)]
            for role, tensor in call.parameters.items()
            if id(tensor) in known
        }
        if not names or not output.requires_grad:
            return output
        if len(self.uses) in self._tracer.repeated:
            output = one_each(output, self._examples).clone()
        self.uses.append(Use(rule, call, names, output))
        self.versions.append(output._version)
        # A copy protects the output itself from later operations in place.
        return output.clone() if self._tracer.copying else output


def one_each(shared: Tensor, examples: int) -> Tensor:
    """Return a tensor that all examples share, expanded to (B, …)."""
    rest = shared.shape[1:] if shared.ndim and shared.shape[0] == 1 else shared.shape
    return shared.expand(examples, *rest)


class Tracer:
    """Runs a network and records the uses of its parameters."""

    def __init__(
        self,
        network: IsolatedNetwork,
        parameters: Mapping[str, Tensor],
        repeated: Set[int] = frozenset(),
    ) -> None:
        self.network = network
        self.repeated = repeated
        """Numbers of the uses that have one output for all examples, such as the embedding of positions.
        The network receives it repeated for each example, so that each example has its own gradients."""
        self._parameters = parameters
        self.names = {id(tensor): name for name, tensor in parameters.items()}
        self.copying = False
        """Whether the network receives copies of the recorded outputs."""

    def twin(self) -> Tracer:
        """Return a tracer of the same parameters in a copy of the network, for another thread."""
        network = copied(self.network, share_parameters=True)
        return Tracer(network, self._parameters, self.repeated)

    def run(self, inputs_B: Tensor) -> tuple[Tensor, list[Use]]:
        """Return the outputs (B, C) and the uses in their order."""
        with torch.enable_grad():
            while True:
                recorder = Recorder(self, len(inputs_B))
                with recorder:
                    outputs = self.network(inputs_B)
                now = [use.output._version for use in recorder.uses]
                if self.copying or now == recorder.versions:
                    return outputs, recorder.uses
                # An operation in place hides an output, so outputs are copied from now on.
                self.copying = True


def output_gradients(
    combined_BC: Tensor, uses: list[Use], batched: bool = False
) -> list[list[Tensor]]:
    """Return, for each use, the gradients of C combinations of outputs by its output.

    A backward pass serves all examples, since no output depends on another example. If ``batched``,
    one pass also serves all combinations, provided that `torch.func.vmap` supports the operations.
    """
    C = combined_BC.shape[1]
    if not uses or not combined_BC.requires_grad:
        # Without a graph no use affects the outputs.
        return [[torch.zeros_like(use.output) for _ in range(C)] for use in uses]
    outputs = [use.output for use in uses]
    each_CBC = torch.eye(C, dtype=combined_BC.dtype, device=combined_BC.device)[:, None]
    each_CBC = each_CBC.expand(C, *combined_BC.shape)
    if batched and C > 1:
        try:
            # The graph is retained in case that this pass fails.
            found = torch.autograd.grad(
                combined_BC, outputs, each_CBC, True, is_grads_batched=True, allow_unused=True
            )
            return [
                [torch.zeros_like(output)] * C if gradients_C is None else list(gradients_C)
                for output, gradients_C in zip(outputs, found, strict=True)
            ]
        except (RuntimeError, NotImplementedError) as error:
            if ran_out_of_memory(error):
                raise
    passes = [
        torch.autograd.grad(combined_BC, outputs, one_BC, c + 1 < C, allow_unused=True)
        for c, one_BC in enumerate(each_CBC)
    ]
    return [
        [torch.zeros_like(output) if gradient is None else gradient for gradient in gradients_C]
        for output, gradients_C in zip(outputs, zip(*passes, strict=True), strict=True)
    ]


@dataclass(frozen=True)
class UseSite:
    """A call that uses parameters, as every run makes it: its rule, parameters and layouts."""

    rule: Rule
    names: dict[Role, str]
    inputs: Layout | None
    """None if all examples share the inputs."""
    output: Layout
    repeated: bool = False
    """Whether all examples share the output, which is then repeated for each."""

    def factor(self, use: Use, gradients_C: list[Tensor], roles: tuple[Role, ...]) -> Factor:
        """Return the gradients of the outputs by the parameters in these roles.

        Raises
        ------
        KernelError
            The use is not of this site.
        """
        if use.rule is not self.rule or use.names != self.names:
            raise KernelError(
                f"the model used {', '.join(use.names.values())} where it used "
                f"{', '.join(self.names.values())} before; its path must not depend on the inputs"
            )
        each_B = [self.output.examples_first(gradient) for gradient in gradients_C]
        # Stacking a single tensor would copy it.
        gradients_BC = each_B[0][:, None] if len(each_B) == 1 else torch.stack(each_B, dim=1)
        inputs = use.call.inputs.detach()
        if self.inputs is None:
            inputs_B = one_each(inputs, len(gradients_BC))
        else:
            inputs_B = self.inputs.examples_first(inputs)
        return self.rule.factor(use.call, inputs_B, gradients_BC, roles)
