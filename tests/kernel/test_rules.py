"""Each layer rule gives the oracle's kernel, on random shapes, in every form and by every strategy.

Shapes: N, M examples, C outputs.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from ntk_cases import FORMS, KNOWN_SPEED, of_full, rules_ntk, speed
from ntk_cases import RULES as RULES_ONLY
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from distillens.errors import KernelError
from distillens.kernel import oracle_gram
from distillens.kernel.factors.factor import Factor, Pairing, Role
from distillens.kernel.factors.factored import Factored
from distillens.kernel.factors.tokens import TokenGradients
from distillens.kernel.planning import cost_model
from distillens.kernel.planning.cost_model import Choice, Purpose, Strategy, choose
from distillens.kernel.rules import RULES, register
from distillens.kernel.rules.convolution import ConvolutionGradients, Window
from distillens.kernel.rules.linear import Linear
from distillens.kernel.tracing.directions import Outputs
from distillens.kernel.tracing.uses import Tracer

Draw = Callable[[st.SearchStrategy[Any]], Any]
Case = tuple[nn.Module, Tensor, Tensor]
"""A model, and two sets of inputs for it."""

CLASSES = 3
STRATEGIES: tuple[Strategy, ...] = ("materialised", "direct", "streamed", "factored")
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
few = settings(
    max_examples=6,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
def force(monkeypatch: pytest.MonkeyPatch) -> Callable[[Strategy], None]:
    """Return a function that forces a strategy on every use that supports it."""

    def to(strategy: Strategy) -> None:
        def chosen(factor: Factor, purpose: Purpose, shared: bool) -> Choice:
            pairing, cost = purpose.pairing, None
            if not shared and isinstance(factor, Factored):
                if strategy == "direct":
                    cost = factor.direct_cost(pairing)
                elif strategy == "streamed" and purpose.at_once:
                    cost = factor.streamed_cost(pairing)
                elif strategy == "factored":
                    cost = factor.factored_cost(pairing)
            if cost:
                return Choice(strategy, cost)
            return Choice("materialised", factor.materialised_cost(pairing))

        monkeypatch.setattr(cost_model, "choose", chosen)

    return to


def distance(found: Tensor, wanted: Tensor) -> float:
    """Return how far apart two Grams are, relative to the wanted one (Frobenius)."""
    assert found.shape == wanted.shape
    return float((found.double() - wanted).norm() / wanted.norm())


def plain_error(model: nn.Module, rows: Tensor) -> float:
    """Return how far gradients by plain float32 autograd are from those in float64."""
    found = []
    for dtype in (torch.float32, torch.float64):
        network = copy.deepcopy(model).to(dtype)
        weights = [weight for weight in network.parameters() if weight.requires_grad]
        each = []
        for row in rows if not rows.is_floating_point() else rows.to(dtype):
            for output in network(row[None])[0]:
                made = torch.autograd.grad(
                    output, weights, retain_graph=True, materialize_grads=True
                )
                each.append(torch.cat([one.flatten() for one in made]))
        found.append(torch.stack(each).double())
    return distance(found[0], found[1])


def assert_all_covered(
    case: Case,
    outputs: Outputs,
    dtype: torch.dtype,
    crossed: bool,
    uncovered: tuple[str, ...] = (),
) -> None:
    """Compare with the oracle, and see that rules did the work."""
    model, rows, other = case
    if dtype == torch.float32:
        # Some drawn networks are so ill-conditioned that plain float32 gradients are not exact.
        assume(plain_error(model, rows) <= TOLERANCE[dtype] / 4)
    columns = other if crossed else None
    limits = replace(RULES_ONLY, speed=KNOWN_SPEED)
    made = rules_ntk(model, limits, outputs=outputs, dtype=dtype).gram(rows, columns)
    wanted = of_full(oracle_gram(model, rows, columns, outputs="full"), outputs, CLASSES)
    assert distance(made.values, wanted) <= TOLERANCE[dtype]
    if not uncovered:
        assert made.notes == ()
    else:
        assert len(made.notes) == 1
        assert all(name in made.notes[0] for name in uncovered)


def finished(layers: list[nn.Module], inputs: Tensor, seed: int) -> nn.Module:
    """Put a head on layers, and give all weights and statistics a size that shows."""
    generator = torch.Generator().manual_seed(seed)
    body = nn.Sequential(*layers).eval()
    with torch.no_grad():
        size = body(inputs[:1]).numel()
    model = nn.Sequential(body, nn.Tanh(), nn.Flatten(), nn.Linear(size, CLASSES)).eval()
    for tensor in model.parameters():
        tensor.data = 0.7 * torch.randn(tensor.shape, generator=generator)
    for name, tensor in model.named_buffers():
        if name.endswith("mean"):
            tensor.data = torch.randn(tensor.shape, generator=generator)
        elif name.endswith("var"):
            tensor.data = 0.5 + torch.rand(tensor.shape, generator=generator)
    return model


def pictures(draw: Draw, *shape: int) -> tuple[Tensor, Tensor, int]:
    """Return two sets of inputs of other lengths, and a seed for weights."""
    seed = draw(st.integers(0, 10**6))
    generator = torch.Generator().manual_seed(seed)
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    both = torch.randn(rows + columns, *shape, generator=generator)
    return both[:rows], both[rows:], seed


def built(draw: Draw, layers: list[nn.Module], *shape: int) -> Case:
    """Return a case of layers with a head, on inputs of a shape."""
    rows, columns, seed = pictures(draw, *shape)
    return finished(layers, rows, seed), rows, columns


sizes = st.integers(1, 5)
truths = st.booleans()
mostly = st.sampled_from([True, True, True, False])


def linear(draw: Draw) -> Case:
    positions = draw(st.lists(sizes, max_size=2))
    fan_in = draw(sizes)
    layer = nn.Linear(fan_in, draw(sizes), bias=draw(truths))
    return built(draw, [layer], *positions, fan_in)


def convolution(draw: Draw, axes: Literal[1, 2]) -> Case:
    groups = draw(st.integers(1, 3))
    channels = groups * draw(st.integers(1, 2))
    kernel = tuple(draw(st.integers(1, 3)) for _ in range(axes))
    dilation = tuple(draw(st.integers(1, 2)) for _ in range(axes))
    sides = [draw(st.integers(5, 7)) for _ in range(axes)]
    padding = draw(st.sampled_from(["same", "valid", *[tuple(range(axes)), 0, 1, (2,) * axes]]))
    stride = 1 if padding == "same" else tuple(draw(st.integers(1, 3)) for _ in range(axes))
    made: Any = (nn.Conv1d, nn.Conv2d)[axes - 1]
    layer = made(
        channels,
        groups * draw(st.integers(1, 2)),
        kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=draw(truths),
        padding_mode=draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"])),
    )
    return built(draw, [layer], channels, *sides)


def convolution_1d(draw: Draw) -> Case:
    return convolution(draw, 1)


def convolution_2d(draw: Draw) -> Case:
    return convolution(draw, 2)


def depthwise(draw: Draw) -> Case:
    channels = draw(st.integers(2, 4))
    layer = nn.Conv2d(channels, 2 * channels, 3, padding=1, groups=channels, bias=draw(truths))
    return built(draw, [layer], channels, 4, 5)


def batch_norm(draw: Draw) -> Case:
    # A map in front: without it, nothing but its weight and bias would be differentiated.
    channels, affine = draw(sizes), draw(mostly)
    if draw(truths):
        return built(
            draw,
            [nn.Conv2d(2, channels, 2), nn.BatchNorm2d(channels, affine=affine, eps=0.1)],
            *(2, 4, 3),
        )
    positions = draw(st.sampled_from([(), (4,)]))
    return built(draw, [nn.BatchNorm1d(channels, affine=affine), nn.Tanh()], channels, *positions)


def layer_norm(draw: Draw) -> Case:
    shape = draw(st.lists(st.integers(2, 4), min_size=1, max_size=2))
    positions = draw(st.lists(sizes, max_size=1))
    affine = draw(mostly)
    layer = nn.LayerNorm(shape, elementwise_affine=affine, bias=draw(truths), eps=1e-2)
    return built(draw, [layer], *positions, *shape)


def group_norm(draw: Draw) -> Case:
    groups, each = draw(st.integers(1, 3)), draw(st.integers(2, 3))
    positions = draw(st.lists(sizes, max_size=2))
    layer = nn.GroupNorm(groups, groups * each, affine=draw(mostly), eps=1e-2)
    return built(draw, [layer], groups * each, *positions)


def rms_norm(draw: Draw) -> Case:
    shape = draw(st.lists(st.integers(2, 4), min_size=1, max_size=2))
    layer = nn.RMSNorm(shape, eps=draw(st.sampled_from([None, 1e-2])))
    return built(draw, [layer], *draw(st.lists(sizes, max_size=1)), *shape)


def embedding(draw: Draw) -> Case:
    rows, positions = draw(st.integers(2, 30)), draw(st.lists(st.integers(1, 6), max_size=2))
    padding = draw(st.sampled_from([None, 0, rows - 1, -1]))
    _, _, seed = pictures(draw)
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, rows, (7, *positions), generator=generator)
    layer = nn.Embedding(rows, draw(sizes), padding_idx=padding)
    return finished([layer], tokens, seed), tokens[:4], tokens[4:]


class SelfAttention(nn.Module):
    """Attention of torch.nn within itself, with masks."""

    def __init__(self, batch_first: bool, mask: str, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=batch_first, **options)
        self._first, self._mask = batch_first, mask

    def forward(self, inputs: Tensor) -> Tensor:
        """Return attended inputs."""
        N, T, _ = inputs.shape
        given: dict[str, Any] = {"need_weights": "weights" in self._mask}
        if "padding" in self._mask:
            given["key_padding_mask"] = (torch.arange(T) == T - 1).expand(N, T)
        causal = torch.ones(T, T).triu(1).bool()
        if "causal" in self._mask:
            given["attn_mask"] = causal
            given["is_causal"] = "hint" in self._mask
        if "numbers" in self._mask:
            given["attn_mask"] = causal.to(inputs).expand(2 * N, T, T)
            if "padding" in self._mask:
                given["key_padding_mask"] = -given["key_padding_mask"].to(inputs)
        if not self._first:
            inputs = inputs.transpose(0, 1)
        outputs = self.attention(inputs, inputs, inputs, **given)[0]
        return outputs if self._first else outputs.transpose(0, 1)


class CrossAttention(nn.Module):
    """Attention of some positions to others."""

    def __init__(self, separate: bool, shared_value: bool, **options: Any) -> None:
        super().__init__()
        more: dict[str, Any] = {"kdim": 3, "vdim": 3} if separate else {}
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True, **more, **options)
        self.key = nn.Linear(4, 3 if separate else 4)
        self._shared = shared_value

    def forward(self, inputs: Tensor) -> Tensor:
        """Return what the first two positions see of the others."""
        key = self.key(inputs[:, 2:])
        value = key if self._shared else key.tanh()
        return self.attention(inputs[:, :2], key, value)[0]


MASKS = (
    *("", "weights", "causal", "causal hint", "causal hint weights", "padding"),
    *("padding causal", "padding causal hint", "numbers", "numbers padding weights"),
)


def attention(draw: Draw) -> Case:
    bias = draw(truths)
    if draw(truths):
        layer = SelfAttention(draw(truths), draw(st.sampled_from(MASKS)), bias=bias)
    else:
        layer = CrossAttention(draw(truths), draw(truths), bias=bias)
    return built(draw, [layer], draw(st.integers(3, 5)), 4)


def encoder(draw: Draw) -> Case:
    layer = nn.TransformerEncoderLayer(
        4, 2, 6, batch_first=True, norm_first=draw(truths), activation="gelu"
    )
    return built(draw, [nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)], 3, 4)


KINDS = (
    *(linear, convolution_1d, convolution_2d, depthwise, batch_norm, layer_norm, group_norm),
    *(rms_norm, embedding, attention, encoder),
)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@few
@given(data=st.data())
def test_a_rule_equals_the_oracle(
    kind: Callable[[Draw], Case], force: Callable[[Strategy], None], data: st.DataObject
) -> None:
    case = kind(data.draw)
    form, crossed = data.draw(st.sampled_from(FORMS)), data.draw(truths)
    for strategy in STRATEGIES:
        force(strategy)
        assert_all_covered(case, form, torch.float64, crossed)
    assert_all_covered(case, form, torch.float32, crossed)


class Everything(nn.Module):
    """TokenGradients, positions, a convolution along them, a norm and linear maps at each."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(9, 4, padding_idx=0)
        self.positions = nn.Embedding(8, 4)
        self.along = nn.Conv1d(4, 4, 3, padding=1, groups=2)
        self.norm = nn.LayerNorm(4)
        self.mix = nn.Linear(4, 5)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits."""
        places = torch.arange(tokens.shape[1])[None]
        hidden = self.tokens(tokens) + self.positions(places)
        hidden = self.norm(hidden + self.along(hidden.mT).mT)
        return self.head(self.mix(hidden).tanh().mean(dim=1))


@pytest.fixture(scope="module")
def everything() -> Case:
    """Return a model with most rules, and tokens."""
    torch.manual_seed(0)
    tokens = torch.randint(0, 9, (9, 6))
    return Everything(), tokens[:5], tokens[5:]


@pytest.mark.parametrize("outputs", FORMS, ids=str)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_form_by_every_strategy(
    everything: Case, outputs: Outputs, strategy: Strategy, force: Callable[[Strategy], None]
) -> None:
    force(strategy)
    for crossed in (False, True):
        assert_all_covered(everything, outputs, torch.float64, crossed)
        assert_all_covered(everything, outputs, torch.float32, crossed)


@pytest.mark.parametrize("form", ["diagonal", "full"])
def test_tokens_gathered_equal_tokens_compared(form: Pairing) -> None:
    generator = torch.Generator().manual_seed(3)

    def some(examples: int, positions: int) -> TokenGradients:
        tokens = torch.randint(0, 12, (examples, positions), generator=generator)
        shape = (examples, 2, 1, positions, 3)
        return TokenGradients(
            tokens, torch.randn(shape, generator=generator, dtype=torch.float64), 12
        )

    far = some(2, 3)
    far.tokens_BT += 20  # nothing in common
    assert not far.pairs(some(4, 2), form).any()
    for left, right in (
        (some(4, 5), some(3, 5)),
        (some(2, 1), some(1, 1)),
        (some(3, 1), some(2, 6)),
    ):
        compared = Factored.pairs(left, right, form)
        torch.testing.assert_close(left.pairs(right, form), compared)
        written = [each.gradient("weight") for each in (left, right)]
        equation = "bcp,dep->bcde" if form == "full" else "bcp,dcp->cbd"
        torch.testing.assert_close(torch.einsum(equation, *written), compared)


def test_products_with_tokens_equal_those_of_materialised_gradients() -> None:
    generator = torch.Generator().manual_seed(4)
    tokens = torch.randint(0, 7, (3, 5), generator=generator)
    gradients = torch.randn(3, 2, 1, 5, 4, generator=generator, dtype=torch.float64)
    factor = TokenGradients(tokens, gradients, 7)
    written = factor.gradient("weight")
    vectors = torch.randn(3, 2, 3, generator=generator, dtype=torch.float64)
    pulled = factor.pull(vectors)
    torch.testing.assert_close(pulled.flatten(1), torch.einsum("bcp,bcm->mp", written, vectors))
    pushed = torch.einsum("bcp,mp->bcm", written, pulled.flatten(1))
    torch.testing.assert_close(factor.push(pulled), pushed)
    torch.testing.assert_close(factor.squares(), written.square().sum(dim=2))


def test_gradients_by_a_large_table_are_never_materialised() -> None:
    tokens = torch.randint(0, 50_000, (2, 300))
    factor = TokenGradients(tokens, torch.zeros(2, 1, 1, 300, 64), 50_000)
    machine = speed(5e10, 1e10, 2e9, patched=1e10, convolved=1e9)
    for each in (None, 1.0, 256.0):
        assert choose(factor, Purpose("diagonal", machine, each), False).strategy == "factored"


@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.data())
def test_a_convolution_forms_the_gradients_that_patches_form(data: st.DataObject) -> None:
    def two(low: int, high: int) -> tuple[int, int]:
        return data.draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    groups = data.draw(st.integers(1, 2))
    around = (*two(0, 2), *two(0, 2))
    window = Window(two(1, 3), two(1, 3), around, two(1, 2), groups)
    into, out = groups * data.draw(st.integers(1, 2)), groups * data.draw(st.integers(1, 3))
    pictures = torch.randn(3, into, 6, 7, dtype=torch.float64)
    weight = torch.randn(out, into // groups, *window.kernel, dtype=torch.float64)
    outputs = functional.conv2d(
        functional.pad(pictures, around),
        weight,
        stride=window.stride,
        dilation=window.dilation,
        groups=groups,
    )
    gradients = torch.randn(3, 1, groups, out // groups, outputs[0, 0].numel()).double().mT
    factor = ConvolutionGradients(pictures, window, gradients, ("weight", "bias"))
    sizes: dict[Role, int] = {"weight": weight.numel(), "bias": out}
    for role, size in sizes.items():
        target = torch.empty(3, 1, size, dtype=torch.float64)
        factor.write_directly(role, target)
        torch.testing.assert_close(target, factor.gradient(role))


@pytest.mark.parametrize(
    ("channels", "side", "strategy"), [(16, 32, "direct"), (128, 8, "materialised")]
)
def test_few_channels_are_convolved_and_many_use_patches(
    channels: int, side: int, strategy: Strategy
) -> None:
    """At the speeds of a machine whose grouped convolutions are fast for few channels only."""
    machine = speed(
        4e10, 2e10, 8e9, patched=2e10, thinly_patched=1e10, convolved=1e10, thinly_convolved=2.4e10
    )
    window = Window((3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1)
    pictures = torch.zeros(2, channels, side, side)
    gradients = torch.zeros(2, 1, 1, side * side, channels)
    factor = ConvolutionGradients(pictures, window, gradients, ("weight",))
    assert choose(factor, Purpose("diagonal", machine, 256.0), False).strategy == strategy
    assert choose(factor, Purpose("diagonal", machine, 256.0), True).strategy == "materialised"
    several = ConvolutionGradients(pictures, window, gradients.expand(2, 3, 1, -1, -1), ("weight",))
    assert several.direct_cost("diagonal") is None


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("first", [True, False])
def test_a_rewritten_attention_returns_the_same(mask: str, first: bool) -> None:
    torch.manual_seed(5)
    layer = SelfAttention(first, mask).double().eval()
    inputs = torch.randn(3, 5, 4, dtype=torch.float64)
    weights = dict(layer.named_parameters())
    rewritten, uses = Tracer(layer, weights).run(inputs)  # type: ignore[arg-type]
    assert [tuple(use.names.values()) for use in uses] == [
        ("attention.in_proj_weight", "attention.in_proj_bias"),
        ("attention.out_proj.weight", "attention.out_proj.bias"),
    ]
    torch.testing.assert_close(rewritten, layer(inputs), rtol=0, atol=1e-14)


class Pair(nn.Module):
    """A bilinear map of what two linear maps give at each position."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 2), nn.Linear(3, 4)
        self.both = nn.Bilinear(2, 4, 5, bias=bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the bilinear map of both."""
        return self.both(self.left(inputs), self.right(inputs).tanh())


@pytest.fixture
def documented_rule() -> Iterator[None]:
    """Register the rule of docs/extending.md for a while."""
    page = (Path(__file__).parents[2] / "docs" / "extending.md").read_text()
    section = page.split("## Adding a layer rule\n")[1].split("\n## ")[0]
    (block,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    exec(compile(block, "docs/extending.md", "exec"), {"__name__": "extending"})  # ours
    yield
    del RULES[functional.bilinear]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("bias", "shape"), [(False, (3,)), (True, (2, 3))])
def test_the_documented_rule_equals_the_oracle(
    documented_rule: None,
    strategy: Strategy,
    bias: bool,
    shape: tuple[int, ...],
    force: Callable[[Strategy], None],
) -> None:
    force(strategy)
    inputs = torch.randn(7, *shape, generator=torch.Generator().manual_seed(0))
    case = finished([Pair(bias)], inputs, seed=1), inputs[:4], inputs[4:]
    assert_all_covered(case, "full", torch.float64, crossed=False)
    assert_all_covered(case, "trace", torch.float64, crossed=True)


def test_a_function_has_one_rule() -> None:
    class Another(Linear):
        pass

    with pytest.raises(KernelError, match="linear already has the rule Linear; remove it"):
        register(Another())


def covered_by_the_suite() -> set[str]:
    """Return the names of the rules that handle a call in a case of the suite."""
    used: set[str] = set()

    class Watching(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func in RULES:
                used.add(type(RULES[func]).__name__)
            return func(*args, **(kwargs or {}))

    def run(kind: Callable[[Draw], Case]) -> None:
        @settings(few, max_examples=3)
        @given(data=st.data())
        def once(data: st.DataObject) -> None:
            model, rows, _ = kind(data.draw)
            with Watching():
                model(rows)

        once()

    for kind in KINDS:
        run(kind)
    return used


def test_every_rule_is_in_the_suite() -> None:
    assert covered_by_the_suite() >= {type(rule).__name__ for rule in RULES.values()}
