"""Is every use of every parameter accounted for? Found out on three examples, in float64.

Each example's gradients by autograd, the example alone in its batch, are the truth. What the rules
make of all three in one batch must equal it, parameter by parameter. A parameter that also acts in
some other way, or whose examples cannot be told apart, is not covered and is left to torch.func.

Shapes: B examples, C outputs.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from distillens.errors import KernelError
from distillens.kernel.uses import Layout, Place, Tracer, Use, output_gradients

EXAMPLES = 3
_TOLERANCE = 1e-8
"""Of the largest gradient: float64 rounding is far below, a use that is missed far above."""


@dataclass(frozen=True)
class Coverage:
    """The places where parameters are used, in the order of the calls, and what they leave out."""

    places: tuple[Place | None, ...]
    """None for a use whose examples cannot be told apart."""
    covered: tuple[str, ...]
    uncovered: tuple[str, ...]

    def rules(self) -> list[Place]:
        """Return the places of covered parameters, without what is left out."""
        kept = []
        for place in self.places:
            if place is None:
                continue
            names = {role: name for role, name in place.names.items() if name in self.covered}
            if names:
                kept.append(replace(place, names=names))
        return kept


def find_coverage(network: nn.Module, parameters: Mapping[str, Tensor], inputs: Tensor) -> Coverage:
    """Return where the parameters are used.

    Parameters
    ----------
    network
        In evaluation mode; stays as it is.
    parameters
        By name; those that count.
    inputs
        Some examples, of which three are taken; fewer are repeated, a little apart.

    Raises
    ------
    KernelError
        An output of the network depends on another example of the batch.
    """
    twin = copy.deepcopy(network).double()
    weights = {name: weight for name, weight in twin.named_parameters() if name in parameters}
    probe = _probe(inputs)
    tracer = Tracer(twin, weights)
    outputs_BO, uses = tracer.run(probe)
    fewer_BO, fewer = tracer.run(probe[:-1])
    if not _near(outputs_BO[:-1], fewer_BO):
        raise KernelError(
            "an output of the model changes with the other examples of its batch, so it has no "
            "kernel of its own; look for a normalisation or an attention across examples"
        )
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(outputs_BO.shape[1], generator=generator, dtype=torch.float64)
    direction = direction.to(outputs_BO.device)
    truth = [_alone(twin, weights, example, direction) for example in probe]
    if [(use.rule, use.names) for use in uses] != [(use.rule, use.names) for use in fewer]:
        return Coverage((None,) * len(uses), (), tuple(weights))
    gradients = output_gradients(outputs_BO, uses, direction[None])
    choices = [_candidates(use, less) for use, less in zip(uses, fewer, strict=True)]
    places = _settled(choices, uses, gradients, truth)
    covered = []
    for name in weights:
        mine = [
            (place, use, gradient)
            for place, use, gradient in zip(places, uses, gradients, strict=True)
            if name in use.names.values()
        ]
        if all(place is not None for place, _, _ in mine):
            made = _total(name, [(p, u, g) for p, u, g in mine if p is not None], weights[name])
            if _near(made, torch.stack([each[name] for each in truth])):
                covered.append(name)
    uncovered = tuple(name for name in weights if name not in covered)
    return Coverage(tuple(places), tuple(covered), uncovered)


def _settled(
    choices: list[list[Place]],
    uses: list[Use],
    gradients: list[list[Tensor]],
    truth: list[dict[str, Tensor]],
) -> list[Place | None]:
    """Choose among the layouts of each use the one whose gradients are right.

    Where several uses share a parameter, only all of them together can be right or wrong.
    """
    places: list[Place | None] = [each[0] if each else None for each in choices]
    for name in {name for use in uses for name in use.names.values()}:
        mine = [k for k, use in enumerate(uses) if name in use.names.values()]
        if any(not choices[k] for k in mine) or all(len(choices[k]) == 1 for k in mine):
            continue
        wanted = torch.stack([each[name] for each in truth])
        for combined in itertools.islice(itertools.product(*(choices[k] for k in mine)), 64):
            parts = [(p, uses[k], gradients[k]) for p, k in zip(combined, mine, strict=True)]
            if _near(_total(name, parts, wanted[0]), wanted):
                for place, k in zip(combined, mine, strict=True):
                    places[k] = place
                break
    return places


def _total(name: str, parts: list[tuple[Place, Use, list[Tensor]]], like: Tensor) -> Tensor:
    """Add up what the rules say of a parameter's gradient, (B, numbers)."""
    total = like.new_zeros(EXAMPLES, like.numel())
    for place, use, gradient in parts:
        for role, called in use.names.items():
            if called == name:
                total += place.factor(use, gradient, (role,)).gradient(role)[:, 0]
    return total


def _candidates(use: Use, fewer: Use) -> list[Place]:
    """Return the layouts that fit the shapes with three and with two examples."""
    of_inputs = _layouts(use.call.inputs.shape, fewer.call.inputs.shape)
    of_output = _layouts(use.output.shape, fewer.output.shape)
    return [
        Place(use.rule, use.names, inputs, output)
        for inputs in of_inputs
        for output in of_output
        if inputs.minor == output.minor
    ]


def _layouts(shape: torch.Size, fewer: torch.Size) -> list[Layout]:
    axes = [axis for axis, size in enumerate(shape) if size != fewer[axis]]
    if len(shape) != len(fewer) or len(axes) != 1:
        return []
    axis = axes[0]
    inner = shape[axis] - fewer[axis]
    if inner <= 0 or shape[axis] != EXAMPLES * inner:
        return []
    if inner == 1:
        return [Layout(axis)]
    return [Layout(axis, inner), Layout(axis, inner, minor=True)]


def _alone(
    network: nn.Module, weights: Mapping[str, Tensor], example: Tensor, direction: Tensor
) -> dict[str, Tensor]:
    with torch.enable_grad():
        output = (network(example[None]) @ direction).sum()
    gradients = torch.autograd.grad(
        output, list(weights.values()), allow_unused=True, materialize_grads=True
    )
    return {name: each.flatten() for name, each in zip(weights, gradients, strict=True)}


def _probe(inputs: Tensor) -> Tensor:
    """Return three examples that differ."""
    chosen = inputs[:EXAMPLES]
    while len(chosen) < EXAMPLES:
        chosen = torch.cat([chosen, chosen[:1]])
    if not chosen.is_floating_point():
        return chosen
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(chosen.shape, generator=generator, dtype=torch.float64)
    # Equal or blank examples would not show that they were mixed up.
    return chosen.double() + 1e-2 * noise.to(chosen.device) * (chosen.double().std() + 1e-3)


def _near(found: Tensor, wanted: Tensor) -> bool:
    return bool((found - wanted).abs().max() <= _TOLERANCE * (wanted.abs().max() + 1e-300))
