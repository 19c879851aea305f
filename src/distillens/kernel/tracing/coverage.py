"""Coverage: which parameters have all of their uses handled by layer rules.

Three examples are traced in float64. The reference is each example's gradient by autograd, with the
example alone in its batch. What the rules compute from all three examples in one batch must equal it,
parameter by parameter. A parameter that is also used in another way, or whose examples cannot be told
apart, is not covered; its gradients are computed by torch.func.

Shapes: B examples, C outputs, O outputs of the network.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from distillens.errors import KernelError
from distillens.forward.device_errors import ran_out_of_memory
from distillens.kernel.tracing.gradients import gradients_by
from distillens.kernel.tracing.isolated import IsolatedNetwork
from distillens.kernel.tracing.memory import some_examples
from distillens.kernel.tracing.network import copied
from distillens.kernel.tracing.uses import Layout, Tracer, Use, UseSite, output_gradients

EXAMPLES = 3
_TOLERANCE = 1e-8
"""Relative to a parameter's largest gradient: far above float64 rounding, far below a missed use."""
_ROUNDING = 1e-13
"""Relative to the largest of all gradients: smaller gradients are rounding errors. The bias of an
attention's keys moves all scores alike, so that its gradient is nothing but rounding."""


@dataclass(frozen=True)
class Coverage:
    """The sites at which parameters are used, in the order of the calls, and what they cover."""

    sites: tuple[UseSite | None, ...]
    """None for a use whose examples cannot be told apart."""
    covered: tuple[str, ...]
    uncovered: tuple[str, ...]

    def covered_sites(self) -> list[UseSite]:
        """Return the sites that use covered parameters, with the names of these only."""
        kept = [
            replace(site, names={r: name for r, name in site.names.items() if name in self.covered})
            for site in self.sites
            if site
        ]
        return [site for site in kept if site.names]


def find_coverage(
    network: IsolatedNetwork, parameters: Mapping[str, Tensor], inputs: Tensor
) -> Coverage:
    """Return where the parameters are used.

    Parameters
    ----------
    network
        In evaluation mode; it is not changed.
    parameters
        The parameters to differentiate by, by name.
    inputs
        Examples, of which the first three are used. Fewer are repeated; noise is added to all.

    Raises
    ------
    KernelError
        An output of the network depends on other examples of the batch, or on chance.
    """
    trial = _Trial(network, parameters, inputs)
    outputs_BO, uses = trial.run()
    fewer_BO, fewer = trial.run(count=EXAMPLES - 1)
    if not near(outputs_BO[:-1], fewer_BO):
        with torch.no_grad():
            again_BO = trial.network(trial.examples)
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
    reference = _Reference(trial, _random_direction(outputs_BO))
    if not _same_calls(uses, fewer):
        return Coverage((None,) * len(uses), (), tuple(trial.weights))
    repeated, outputs_BO, uses, fewer = _find_repeated(trial, outputs_BO, uses, fewer)
    gradients = reference.output_gradients(outputs_BO, uses)
    candidates = [
        _candidates(use, less, k in repeated)
        for k, (use, less) in enumerate(zip(uses, fewer, strict=True))
    ]
    sites = _choose_sites(candidates, uses, gradients, reference)
    covered = [name for name in trial.weights if _agrees(name, sites, uses, gradients, reference)]
    uncovered = tuple(name for name in trial.weights if name not in covered)
    return Coverage(tuple(sites), tuple(covered), uncovered)


def still_covers(
    network: IsolatedNetwork, parameters: Mapping[str, Tensor], inputs: Tensor, coverage: Coverage
) -> bool:
    """Return whether a coverage that was found for other weights holds for these.

    The gradients of one example are compared with autograd, parameter by parameter, and its outputs
    alone with those among others. Layouts are not searched again. For the parameters see
    `find_coverage`.
    """
    trial = _Trial(network, parameters, inputs)
    outputs_BO, uses = trial.run(repeated_uses(coverage.sites))
    if len(uses) != len(coverage.sites):
        return False
    pairs = zip(coverage.sites, uses, strict=True)
    if any(site and (site.rule, site.names) != (use.rule, use.names) for site, use in pairs):
        return False
    reference = _Reference(trial, _random_direction(outputs_BO), count=1)
    with torch.no_grad():
        alone_1O = trial.network(trial.examples[:1])
    if not near(outputs_BO[:1], alone_1O):
        return False
    gradients = reference.output_gradients(outputs_BO, uses)
    return all(
        _agrees(name, coverage.sites, uses, gradients, reference) for name in coverage.covered
    )


def repeated_uses(sites: Iterable[UseSite | None]) -> frozenset[int]:
    """Return the numbers of the sites with one output for all examples."""
    return frozenset(k for k, site in enumerate(sites) if site and site.repeated)


class _Trial:
    """A float64 copy of a network with examples to trace."""

    def __init__(
        self, network: IsolatedNetwork, parameters: Mapping[str, Tensor], inputs: Tensor
    ) -> None:
        self.network = copied(network).as_type(torch.float64)
        named = self.network.named_parameters()
        self.weights = {name: weight for name, weight in named if name in parameters}
        self.examples = _perturbed(inputs)

        self._real = {name: each for name, each in self.weights.items() if not each.is_complex()}

    def run(
        self, repeated: frozenset[int] = frozenset(), count: int = EXAMPLES
    ) -> tuple[Tensor, list[Use]]:
        """Return the outputs of some examples, and the uses of real parameters.

        Rules do not cover complex parameters.
        """
        return Tracer(self.network, self._real, repeated).run(self.examples[:count])


class _Reference:
    """The gradients of each example by autograd, with the example alone in its batch."""

    def __init__(self, trial: _Trial, direction: Tensor, count: int = EXAMPLES) -> None:
        self._direction = direction
        alone = [self._alone(trial, example) for example in trial.examples[:count]]
        self._gradients = dict(zip(trial.weights, zip(*alone, strict=True), strict=True))
        self._largest = {name: _largest(*each) for name, each in self._gradients.items()}
        self._rounding = _ROUNDING * max(self._largest.values(), default=0.0)

    def output_gradients(self, outputs_BO: Tensor, uses: list[Use]) -> list[list[Tensor]]:
        """Return the gradients of the outputs along the direction by the output of each use."""
        return output_gradients(self._along(outputs_BO)[:, None], uses)

    def agrees(self, name: str, found_Bp: Tensor | None) -> bool:
        """Return whether these are the gradients by a parameter; None stands for zero."""
        if found_Bp is None:
            return self._largest[name] <= self._rounding
        wanted = self._gradients[name]
        found_Bp = found_Bp[: len(wanted)]
        if found_Bp.shape != (len(wanted), wanted[0].numel()):
            return False
        allowed = _TOLERANCE * self._largest[name] + self._rounding
        # One example after another, so that the difference takes little memory.
        return all(
            _largest(found_p - each.flatten()) <= allowed
            for found_p, each in zip(found_Bp, wanted, strict=True)
        )

    def _alone(self, trial: _Trial, example: Tensor) -> list[Tensor]:
        with torch.enable_grad():
            output = self._along(trial.network(example[None])).sum()
        return gradients_by(output, list(trial.weights.values()))

    def _along(self, outputs_BO: Tensor) -> Tensor:
        """Return a combination of outputs, (B,), without those that are infinite."""
        counted = self._direction != 0
        return outputs_BO[:, counted] @ self._direction[counted]


def _random_direction(outputs_BO: Tensor) -> Tensor:
    """Return a combination of outputs; it is zero for outputs that are masked with infinity."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(outputs_BO.shape[1], generator=generator, dtype=torch.float64)
    return direction.to(outputs_BO.device) * torch.isfinite(outputs_BO).all(dim=0)


def _same_calls(uses: list[Use], others: list[Use]) -> bool:
    return [(use.rule, use.names) for use in uses] == [(use.rule, use.names) for use in others]


def _find_repeated(
    trial: _Trial, outputs_BO: Tensor, uses: list[Use], fewer: list[Use]
) -> tuple[frozenset[int], Tensor, list[Use], list[Use]]:
    """Return which uses have one output for all examples, and a run that repeats it for each.

    An output whose shape does not change with the batch is repeated on trial. If the network fails
    with it, or has other outputs, the use stays as it is and is not covered.
    """
    repeated: frozenset[int] = frozenset()
    for k in range(len(uses)):
        if uses[k].output.shape != fewer[k].output.shape:
            continue
        try:
            found_BO, found = trial.run(repeated | {k})
            _, found_fewer = trial.run(repeated | {k}, EXAMPLES - 1)
        except Exception as error:
            if ran_out_of_memory(error):
                raise
            continue  # a model may raise anything for a shape that it does not expect
        if found_BO.shape != outputs_BO.shape or not near(found_BO, outputs_BO):
            continue
        if _same_calls(found, uses) and _same_calls(found_fewer, uses):
            repeated |= {k}
            outputs_BO, uses, fewer = found_BO, found, found_fewer
    return repeated, outputs_BO, uses, fewer


def _choose_sites(
    candidates: list[list[UseSite]],
    uses: list[Use],
    gradients: list[list[Tensor]],
    reference: _Reference,
) -> list[UseSite | None]:
    """Choose for each use the layouts with which its gradients agree with autograd.

    If several uses share a parameter, only their sum can be compared.
    """
    sites: list[UseSite | None] = [each[0] if each else None for each in candidates]
    for name in {name for use in uses for name in use.names.values()}:
        sharing = [k for k, use in enumerate(uses) if name in use.names.values()]
        choices = [candidates[k] for k in sharing]
        if not all(choices) or all(len(each) == 1 for each in choices):
            continue
        for combined in itertools.islice(itertools.product(*choices), 64):
            trial = list(sites)
            for k, site in zip(sharing, combined, strict=True):
                trial[k] = site
            if _agrees(name, trial, uses, gradients, reference):
                sites = trial
                break
    return sites


def _agrees(
    name: str,
    sites: Sequence[UseSite | None],
    uses: list[Use],
    gradients: list[list[Tensor]],
    reference: _Reference,
) -> bool:
    """Return whether the rules' gradients by a parameter, summed over its uses, are autograd's."""
    total: Tensor | None = None
    for site, use, gradient in zip(sites, uses, gradients, strict=True):
        for role, used in use.names.items():
            if used != name:
                continue
            if site is None:
                return False
            try:
                found_Bp = site.factor(use, gradient, (role,)).gradient(role)[:, 0]
                total = found_Bp if total is None else total + found_Bp
            except (RuntimeError, ValueError, IndexError) as error:
                if ran_out_of_memory(error):
                    raise
                return False  # the rule does not support these shapes, so the layout is wrong
    return reference.agrees(name, total)


def _candidates(use: Use, fewer: Use, repeated: bool) -> list[UseSite]:
    """Return the sites with layouts that fit the shapes for three and for two examples."""
    shapes = use.call.inputs.shape, fewer.call.inputs.shape
    shared = repeated and shapes[0] == shapes[1]
    of_inputs: list[Layout | None] = [None] if shared else [*_layouts(*shapes)]
    return [
        UseSite(use.rule, use.names, inputs, output, repeated)
        for inputs in of_inputs
        for output in _layouts(use.output.shape, fewer.output.shape)
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
    return [Layout(axis, inner, minor) for minor in ((False,) if inner == 1 else (False, True))]


def unlike_examples(inputs: Tensor) -> Tensor:
    """Return the first example and two at a distance from it that is comparable to its norm."""
    first = inputs[:1]
    if not (first.is_floating_point() or first.is_complex()):
        return some_examples(inputs, EXAMPLES)
    noise = _noise(2, first)
    return torch.cat([first, first + (first.abs().mean() + 1e-3) * noise])


def _perturbed(inputs: Tensor) -> Tensor:
    """Return three examples with a little noise: equal examples would hide that they are mixed up."""
    chosen = some_examples(inputs, EXAMPLES)
    if not (chosen.is_floating_point() or chosen.is_complex()):
        return chosen
    chosen = chosen.to(torch.complex128 if chosen.is_complex() else torch.float64)
    return chosen + 1e-2 * _noise(EXAMPLES, chosen) * (chosen.std() + 1e-3)


def _noise(examples: int, like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (examples, *like.shape[1:])
    return torch.randn(shape, generator=generator, dtype=like.dtype).to(like.device)


def near(found: Tensor, wanted: Tensor, tolerance: float = _TOLERANCE) -> bool:
    """Return whether outputs are equal up to a share of the largest of the wanted ones."""
    # Masked outputs are infinite; other infinities and NaN are not near to anything.
    masked = found.isinf() & (found == wanted)
    found, wanted = found.masked_fill(masked, 0.0), wanted.masked_fill(masked, 0.0)
    return _largest(found - wanted) <= tolerance * _largest(wanted)


def _largest(*tensors: Tensor) -> float:
    """Return the largest absolute value, NaN if one is NaN."""
    found = [torch.stack(each.detach().aminmax()).abs() for each in tensors if each.numel()]
    # Unlike Python's maximum, torch's is NaN if a number is NaN.
    return float(torch.cat(found).max()) if found else 0.0
