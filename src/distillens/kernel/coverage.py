"""Is every use of every parameter accounted for? Found out on three examples, in float64.

Each example's gradients by autograd, the example alone in its batch, are the truth. What the rules
make of all three in one batch must equal it, parameter by parameter. A parameter that also acts in
some other way, or whose examples cannot be told apart, is not covered and is left to torch.func.

Shapes: B examples, C outputs.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Set
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from distillens.errors import KernelError
from distillens.kernel.called import CalledNetwork
from distillens.kernel.failures import ran_out_of_memory
from distillens.kernel.gradients import gradients_by
from distillens.kernel.network import copied
from distillens.kernel.uses import Layout, Place, Tracer, Use, output_gradients

EXAMPLES = 3
_TOLERANCE = 1e-8
"""Of a parameter's largest gradient: float64 rounding is far below, a missed use far above."""
_ROUNDING = 1e-13
"""Of all gradients' largest: what is below is rounding. The bias of an attention's keys has no
gradient but for that, since it moves all scores alike."""


@dataclass(frozen=True)
class Coverage:
    """The places where parameters are used, in the order of the calls, and what they leave out."""

    places: tuple[Place | None, ...]
    """None for a use whose examples cannot be told apart."""
    covered: tuple[str, ...]
    uncovered: tuple[str, ...]

    @property
    def repeated(self) -> frozenset[int]:
        """Which of `rules` have one output for all examples."""
        return frozenset(k for k, place in enumerate(self.rules()) if place.repeated)

    @property
    def repeated_calls(self) -> frozenset[int]:
        """Which calls have one output for all examples, of all that use a parameter."""
        return frozenset(k for k, place in enumerate(self.places) if place and place.repeated)

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


def find_coverage(
    network: CalledNetwork, parameters: Mapping[str, Tensor], inputs: Tensor
) -> Coverage:
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
        An output of the network depends on another example of the batch, or on chance.
    """
    twin = copied(network).as_type(torch.float64)
    weights = {name: weight for name, weight in twin.named_parameters() if name in parameters}
    # Rules know of real numbers only.
    ruled = {name: weight for name, weight in weights.items() if not weight.is_complex()}
    examples = _probe(inputs)
    outputs_BO, uses = Tracer(twin, ruled).run(examples)
    fewer_BO, fewer = Tracer(twin, ruled).run(examples[:-1])
    if not near(outputs_BO[:-1], fewer_BO):
        with torch.no_grad():
            again_BO = twin(examples)
        if not near(again_BO, outputs_BO):
            raise KernelError(
                "the model's outputs differ between two calls with the same inputs, so they have "
                "no kernel; look for dropout that is on in evaluation mode, other random numbers, "
                "or state that a call changes"
            )
        raise KernelError(
            "an output of the model changes with the other examples of its batch, so it has no "
            "kernel of its own; look for a normalisation or an attention across examples"
        )
    direction = _direction(outputs_BO)
    truth = _Truth(twin, weights, examples, direction)
    if not _alike(uses, fewer):
        return Coverage((None,) * len(uses), (), tuple(weights))
    repeated, outputs_BO, uses, fewer = _repeated(twin, ruled, examples, outputs_BO, uses, fewer)
    gradients = output_gradients(_along(outputs_BO, direction)[:, None], uses)
    choices = [
        _candidates(use, less, k in repeated)
        for k, (use, less) in enumerate(zip(uses, fewer, strict=True))
    ]
    places = _settled(choices, uses, gradients, truth)
    covered = []
    for name in weights:
        mine = [
            (place, use, gradient)
            for place, use, gradient in zip(places, uses, gradients, strict=True)
            if name in use.names.values()
        ]
        if all(place is not None for place, _, _ in mine):
            parts = [(p, u, g) for p, u, g in mine if p is not None]
            if _right(name, parts, truth):
                covered.append(name)
    uncovered = tuple(name for name in weights if name not in covered)
    return Coverage(tuple(places), tuple(covered), uncovered)


def still_covers(
    network: CalledNetwork, parameters: Mapping[str, Tensor], inputs: Tensor, coverage: Coverage
) -> bool:
    """Return whether a coverage found for other weights holds for these.

    One example is compared with autograd, parameter by parameter, and its outputs alone with those
    among others, by the rules of `find_coverage`, whose parameters these are. Layouts are not searched.
    """
    twin = copied(network).as_type(torch.float64)
    weights = {name: weight for name, weight in twin.named_parameters() if name in parameters}
    ruled = {name: weight for name, weight in weights.items() if not weight.is_complex()}
    examples = _probe(inputs)
    outputs_BO, uses = Tracer(twin, ruled, coverage.repeated_calls).run(examples)
    known = [(place.rule, place.names) if place else None for place in coverage.places]
    made = [(use.rule, use.names) for use in uses]
    if len(made) != len(known) or any(k not in (None, m) for k, m in zip(known, made, strict=True)):
        return False
    direction = _direction(outputs_BO)
    truth = _Truth(twin, weights, examples[:1], direction)
    with torch.no_grad():
        alone_1O = twin(examples[:1])
    if not near(outputs_BO[:1], alone_1O):
        return False
    gradients = output_gradients(_along(outputs_BO, direction)[:, None], uses)
    for name in coverage.covered:
        parts = [
            (place, use, gradient)
            for place, use, gradient in zip(coverage.places, uses, gradients, strict=True)
            if place is not None and name in use.names.values()
        ]
        if not _right(name, parts, truth):
            return False
    return True


def _direction(outputs_BO: Tensor) -> Tensor:
    """Return a combination of outputs; those that are masked with infinity take no part."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(outputs_BO.shape[1], generator=generator, dtype=torch.float64)
    return direction.to(outputs_BO.device) * torch.isfinite(outputs_BO).all(dim=0)


def _alike(uses: list[Use], others: list[Use]) -> bool:
    return [(use.rule, use.names) for use in uses] == [(use.rule, use.names) for use in others]


def _repeated(
    network: nn.Module,
    weights: Mapping[str, Tensor],
    probe: Tensor,
    outputs_BO: Tensor,
    uses: list[Use],
    fewer: list[Use],
) -> tuple[Set[int], Tensor, list[Use], list[Use]]:
    """Return which uses have one output for all examples, and a run that repeats it for each.

    An output whose shape does not change with the batch is repeated on trial. Where the network
    does not bear that, or gives other outputs, the use stays as it is and is not covered.
    """
    repeated: frozenset[int] = frozenset()
    for k in range(len(uses)):
        if uses[k].output.shape != fewer[k].output.shape:
            continue
        tracer = Tracer(network, weights, repeated | {k})
        try:
            found_BO, found = tracer.run(probe)
            _, found_fewer = tracer.run(probe[:-1])
        except Exception as error:
            if ran_out_of_memory(error):
                raise
            continue  # whatever a model raises at a shape that it does not expect
        if found_BO.shape != outputs_BO.shape or not near(found_BO, outputs_BO):
            continue
        if _alike(found, uses) and _alike(found_fewer, uses):
            repeated |= {k}
            outputs_BO, uses, fewer = found_BO, found, found_fewer
    return repeated, outputs_BO, uses, fewer


def _settled(
    choices: list[list[Place]],
    uses: list[Use],
    gradients: list[list[Tensor]],
    truth: _Truth,
) -> list[Place | None]:
    """Choose among the layouts of each use the one whose gradients are right.

    Where several uses share a parameter, only all of them together can be right or wrong.
    """
    places: list[Place | None] = [each[0] if each else None for each in choices]
    for name in {name for use in uses for name in use.names.values()}:
        mine = [k for k, use in enumerate(uses) if name in use.names.values()]
        if any(not choices[k] for k in mine) or all(len(choices[k]) == 1 for k in mine):
            continue
        for combined in itertools.islice(itertools.product(*(choices[k] for k in mine)), 64):
            parts = [(p, uses[k], gradients[k]) for p, k in zip(combined, mine, strict=True)]
            if _right(name, parts, truth):
                for place, k in zip(combined, mine, strict=True):
                    places[k] = place
                break
    return places


class _Truth:
    """Each example's gradients by autograd, the example alone in its batch."""

    def __init__(
        self, network: nn.Module, weights: Mapping[str, Tensor], probe: Tensor, direction: Tensor
    ) -> None:
        alone = [_alone(network, weights, example, direction) for example in probe]
        self._alone = dict(zip(weights, zip(*alone, strict=True), strict=True))
        self._largest = {name: _largest(*each) for name, each in self._alone.items()}
        self._rounding = _ROUNDING * max(self._largest.values(), default=0.0)

    def agrees(self, name: str, found_Bp: Tensor) -> bool:
        """Whether these are the examples' gradients by a parameter."""
        alone = self._alone[name]
        # Of more examples the first count.
        found_Bp = found_Bp[: len(alone)]
        if found_Bp.shape != (len(alone), alone[0].numel()):
            return False
        allowed = _TOLERANCE * self._largest[name] + self._rounding
        # One example after another, so that the difference takes the same room again.
        return all(
            _largest(found_p - wanted.flatten()) <= allowed
            for found_p, wanted in zip(found_Bp, alone, strict=True)
        )

    def vanish(self, name: str) -> bool:
        """Whether the outputs do not depend on a parameter."""
        return self._largest[name] <= self._rounding


def _right(name: str, parts: list[tuple[Place, Use, list[Tensor]]], truth: _Truth) -> bool:
    """Whether what the rules say of a parameter's gradients, added up, is what autograd says."""
    total: Tensor | None = None
    for place, use, gradient in parts:
        for role, called in use.names.items():
            if called != name:
                continue
            try:
                found_Bp = place.factor(use, gradient, (role,)).gradient(role)[:, 0]
                total = found_Bp if total is None else total + found_Bp
            except (RuntimeError, ValueError, IndexError) as error:
                if ran_out_of_memory(error):
                    raise
                return False  # shapes that the rule does not know: this is not how it is used
    return truth.vanish(name) if total is None else truth.agrees(name, total)


def _candidates(use: Use, fewer: Use, repeated: bool) -> list[Place]:
    """Return the layouts that fit the shapes with three and with two examples."""
    of_inputs: list[Layout | None] = [*_layouts(use.call.inputs.shape, fewer.call.inputs.shape)]
    if repeated and use.call.inputs.shape == fewer.call.inputs.shape:
        of_inputs = [None]
    of_output = _layouts(use.output.shape, fewer.output.shape)
    return [
        Place(use.rule, use.names, inputs, output, repeated)
        for inputs in of_inputs
        for output in of_output
        if inputs is None or inputs.minor == output.minor
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
) -> list[Tensor]:
    with torch.enable_grad():
        output = _along(network(example[None]), direction).sum()
    return gradients_by(output, list(weights.values()))


def _along(outputs_BO: Tensor, direction: Tensor) -> Tensor:
    """Return a combination of outputs, (B,); of infinite ones none, whatever their factor."""
    return outputs_BO[:, direction != 0] @ direction[direction != 0]


def unlike_examples(inputs: Tensor) -> Tensor:
    """Return the first example and two that are as far from it as it is large."""
    first = inputs[:1]
    if not (first.is_floating_point() or first.is_complex()):
        return _probe(inputs)
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(2, *first.shape[1:], generator=generator, dtype=first.dtype)
    size = first.abs().mean() + 1e-3
    return torch.cat([first, first + size * noise.to(first.device)])


def _probe(inputs: Tensor) -> Tensor:
    """Return three examples that differ."""
    chosen = inputs[:EXAMPLES]
    while len(chosen) < EXAMPLES:
        chosen = torch.cat([chosen, chosen[:1]])
    if not (chosen.is_floating_point() or chosen.is_complex()):
        return chosen.clone()
    kind = torch.complex128 if chosen.is_complex() else torch.float64
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(chosen.shape, generator=generator, dtype=kind).to(chosen.device)
    chosen = chosen.to(kind)
    # Equal or blank examples would not show that they were mixed up.
    return chosen + 1e-2 * noise * (chosen.std() + 1e-3)


def near(found: Tensor, wanted: Tensor, tolerance: float = _TOLERANCE) -> bool:
    """Return whether outputs are alike, up to a share of the largest of those that are wanted."""
    # Masked outputs are infinite; other infinities and NaN are not near to anything.
    masked = found.isinf() & (found == wanted)
    found, wanted = found.masked_fill(masked, 0.0), wanted.masked_fill(masked, 0.0)
    return _largest(found - wanted) <= tolerance * _largest(wanted)


def _largest(*tensors: Tensor) -> float:
    """Return the largest absolute value, NaN where one is."""
    found = [torch.stack(each.detach().aminmax()).abs() for each in tensors if each.numel()]
    # torch's maximum is NaN where one is, other than Python's.
    return float(torch.cat(found).max()) if found else 0.0
