"""No use of a parameter is missed: each is covered by rules, or left to autograd with a note."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from ntk_cases import rules_ntk
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from distillens.errors import KernelError
from distillens.kernel import NTKGram, oracle_gram
from distillens.kernel.assembly import block, fallback
from distillens.kernel.factors import contraction
from distillens.kernel.factors.outer_products import OuterProducts
from distillens.kernel.rules.linear import Linear

EXAMPLES = 5


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Model(nn.Module):
    """Modules by name, and what is done with them."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **modules: Any) -> None:
        super().__init__()
        for name, each in modules.items():
            setattr(self, name, each)
        self._forward = forward

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits."""
        return self._forward(self, inputs)


def gram(model: nn.Module, inputs: Tensor, **options: Any) -> NTKGram:
    """Return the full Gram in float64, after a comparison with the oracle."""
    made = rules_ntk(model, outputs="full", dtype=torch.float64, **options).gram(inputs)
    plain = oracle_gram(model, inputs, outputs="full", vectorised=False, **options)
    assert float((made.values - plain).norm()) <= 1e-10 * float(plain.norm())
    return made


def left(made: NTKGram) -> set[str]:
    """Return the parameters that a note names as not covered."""
    if not made.notes:
        return set()
    (note,) = made.notes
    names = note.removeprefix("no rule covers every use of ").partition(";")[0]
    return set(names.split(", "))


def vectors(*shape: int) -> Tensor:
    return torch.randn(EXAMPLES, *shape)


def head(features: int) -> nn.Linear:
    return nn.Linear(features, 2)


def twice() -> Model:
    return Model(
        lambda m, x: m.head(m.shared(m.shared(x).tanh()).tanh()),
        shared=nn.Linear(4, 4),
        head=head(4),
    )


def seven_times() -> Model:
    def forward(m: Any, x: Tensor) -> Tensor:
        for _ in range(7):
            x = m.shared(x).sin()
        return m.head(x)

    return Model(forward, shared=nn.Linear(4, 4), head=head(4))


def tied() -> Model:
    model: Any = Model(
        lambda m, x: m.head(m.second(m.first(x).tanh()).tanh()),
        first=nn.Linear(4, 4),
        second=nn.Linear(4, 4),
        head=head(4),
    )
    model.second.weight = model.first.weight  # its bias is its own
    return model


def of_another() -> Model:
    return Model(
        lambda m, x: m.head(functional.linear(m.first(x).tanh(), m.first.weight)),
        first=nn.Linear(4, 4),
        head=head(4),
    )


def transposed() -> Model:
    return Model(
        lambda m, x: m.head(m.first(x).tanh() @ m.first.weight),
        first=nn.Linear(4, 3),
        head=head(4),
    )


def plain() -> Model:
    return Model(
        lambda m, x: m.head((m.first(x) + m.added) * m.factor),
        first=nn.Linear(4, 3),
        added=nn.Parameter(torch.randn(3)),
        factor=nn.Parameter(torch.randn(1)),
        head=head(3),
    )


def weight_norm() -> Model:
    first = parametrizations.weight_norm(nn.Linear(4, 3))
    return Model(lambda m, x: m.head(m.first(x).tanh()), first=first, head=head(3))


def spectral_norm() -> Model:
    first = parametrizations.spectral_norm(nn.Linear(4, 3))
    return Model(lambda m, x: m.head(m.first(x).tanh()), first=first, head=head(3)).eval()


def bilinear() -> Model:
    return Model(lambda m, x: m.head(m.both(x, x)), both=nn.Bilinear(4, 4, 3), head=head(3))


def prelu() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.PReLU(3), head(3))


def in_place() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(1, 3, 2),
        nn.ReLU(inplace=True),
        nn.GroupNorm(1, 3),
        nn.SiLU(inplace=True),
        nn.Flatten(),
        nn.Linear(9, 4),
        nn.ELU(inplace=True),
        head(4),
    )


def second_axis() -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, 5)
    encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False).eval()
    return Model(
        lambda m, x: m.head(m.encoder(x.transpose(0, 1))[0]), encoder=encoder, head=head(4)
    )


def merged(m: Any, x: Tensor) -> Tensor:
    hidden = m.norm(m.first(x.flatten(0, 1)).tanh())
    return m.head(hidden.view(len(x), -1))


def merged_minor(m: Any, x: Tensor) -> Tensor:
    hidden = m.norm(m.first(x.transpose(0, 1).flatten(0, 1)).tanh())
    return m.head(hidden.view(3, len(x), -1).transpose(0, 1).flatten(1))


def rows_merged() -> Model:
    return Model(merged, first=nn.Linear(4, 2), norm=nn.BatchNorm1d(2).eval(), head=head(6))


def rows_merged_minor() -> Model:
    return Model(merged_minor, first=nn.Linear(4, 2), norm=nn.LayerNorm(2), head=head(6))


def frames_merged() -> Model:
    first = nn.Conv2d(2, 4, 2, groups=2)
    return Model(merged, first=first, norm=nn.GroupNorm(2, 4), head=head(3 * 4 * 2 * 2))


def frames_merged_minor() -> Model:
    first = nn.Conv1d(2, 4, 2)
    return Model(merged_minor, first=first, norm=nn.BatchNorm1d(4).eval(), head=head(3 * 4 * 2))


def shared_by_all() -> Model:
    """Positions go through an embedding, a norm and a map, once for all examples."""

    def forward(m: Any, x: Tensor) -> Tensor:
        places = m.map(m.norm(m.places(torch.arange(x.shape[1]))))
        hidden = x + places
        hidden += 1
        return m.head(hidden.tanh().flatten(1))

    return Model(
        forward,
        places=nn.Embedding(6, 4),
        norm=nn.LayerNorm(4),
        map=nn.Linear(4, 4),
        head=head(12),
    )


def shared_but_not_by_row() -> Model:
    """A bias for pairs of positions: repeated in front it has too many axes."""

    def forward(m: Any, x: Tensor) -> Tensor:
        steps = torch.arange(3)[:, None] + torch.arange(3)
        scores = x @ x.mT + m.pairs(steps).permute(2, 0, 1)
        return m.head((scores.softmax(dim=-1) @ x).flatten(1))

    return Model(forward, pairs=nn.Embedding(5, 1), head=head(12))


def unused() -> Model:
    return Model(lambda m, x: m.head(x), idle=nn.Linear(4, 4), head=head(4))


def scaled() -> Model:
    """A single number without an axis, such as a learned temperature."""
    return Model(
        lambda m, x: m.head(x) * m.scale, head=head(4), scale=nn.Parameter(torch.tensor(0.7))
    )


def frozen() -> Model:
    model: Any = Model(lambda m, x: m.head(m.first(x).tanh()), first=nn.Linear(4, 3), head=head(3))
    model.first.weight.requires_grad_(False)
    return model


CASES: list[tuple[Callable[[], nn.Module], Tensor, set[str]]] = [
    (twice, vectors(4), set()),
    (seven_times, vectors(4), set()),
    (tied, vectors(4), set()),
    (of_another, vectors(4), set()),
    (transposed, vectors(4), {"first.weight"}),
    (plain, vectors(4), {"added", "factor"}),
    (weight_norm, vectors(4), {f"first.parametrizations.weight.original{k}" for k in (0, 1)}),
    (spectral_norm, vectors(4), {"first.parametrizations.weight.original"}),
    (bilinear, vectors(4), {"both.weight", "both.bias"}),
    (prelu, vectors(4), {"1.weight"}),
    (in_place, vectors(1, 4), set()),
    (second_axis, vectors(3, 4), set()),
    (rows_merged, vectors(3, 4), set()),
    (rows_merged_minor, vectors(3, 4), set()),
    (frames_merged, vectors(3, 2, 3, 3), set()),
    (frames_merged_minor, vectors(3, 2, 3), set()),
    (shared_by_all, vectors(3, 4), set()),
    (shared_but_not_by_row, vectors(3, 4), {"pairs.weight"}),
    (unused, vectors(4), set()),
    (scaled, vectors(4), {"scale"}),
    (frozen, vectors(4), set()),
]


@pytest.mark.parametrize(
    ("make", "inputs", "names"), CASES, ids=lambda case: getattr(case, "__name__", "")
)
def test_every_use_counts(make: Callable[[], nn.Module], inputs: Tensor, names: set[str]) -> None:
    assert left(gram(make(), inputs)) == names


def test_a_recurrent_network_is_left_to_single_passes_if_torch_func_fails() -> None:
    model: Any = Model(
        lambda m, x: m.head(m.lstm(x)[0][:, -1]),
        lstm=nn.LSTM(3, 2, batch_first=True),
        head=head(2),
    )
    made = gram(model, vectors(4, 3))
    assert left(made) == {f"lstm.{name}" for name, _ in model.lstm.named_parameters()}


def test_a_layer_that_changes_its_weight_is_left_out() -> None:
    model: Any = Model(
        lambda m, x: m.head(m.table(x).flatten(1)),
        table=nn.Embedding(6, 3, max_norm=0.5),
        head=head(6),
    )
    before = model.table.weight.clone()
    made = gram(model, torch.randint(0, 6, (EXAMPLES, 2)))
    assert left(made) == {"table.weight"}
    torch.testing.assert_close(model.table.weight, before, rtol=0, atol=0)


def test_an_embedding_with_scaled_gradients_is_refused() -> None:
    table = nn.Embedding(6, 3, scale_grad_by_freq=True)
    model = nn.Sequential(table, nn.Flatten(), head(6))
    with pytest.raises(KernelError, match="scale_grad_by_freq=True"):
        rules_ntk(model, outputs=0).gram(torch.randint(0, 6, (EXAMPLES, 2)))


def test_a_filter_takes_some_parameters() -> None:
    for chosen in (["head.bias"], ["shared.weight", "head.weight"]):
        assert gram(twice(), vectors(4), parameters=chosen).notes == ()


def test_parameters_without_any_effect_give_zero() -> None:
    ntk_of_idle = rules_ntk(unused(), outputs=0, parameters=["idle.weight"])
    values = ntk_of_idle.gram(vectors(4)).values
    assert torch.equal(values, torch.zeros(EXAMPLES, EXAMPLES))


def test_inputs_of_another_length_are_traced_again() -> None:
    model = Model(
        lambda m, x: m.head(m.first(x.flatten(0, 1)).view(len(x), -1, 3).tanh().mean(dim=1)),
        first=nn.Linear(4, 3),
        head=head(3),
    )
    made = rules_ntk(model, outputs="full", dtype=torch.float64)
    for length in (3, 5):
        inputs = vectors(length, 4)
        plain_gram = oracle_gram(model, inputs, outputs="full")
        torch.testing.assert_close(made.gram(inputs).values, plain_gram)


def snapshot(model: nn.Module) -> Any:
    """Return all that a computation could leave behind."""
    hooks = [name for name in vars(nn.Module()) if name.endswith("hooks")]
    return (
        copy.deepcopy(model.state_dict()),
        [
            (module.training, [len(getattr(module, each)) for each in hooks])
            for module in model.modules()
        ],
        [(p.dtype, p.requires_grad, p.grad, p._version) for p in model.parameters()],
    )


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_stays_as_it_is(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(
        nn.Linear(4, 4), nn.BatchNorm1d(4).eval(), nn.Dropout(), nn.ReLU(inplace=True), head(4)
    )
    model[0].bias.requires_grad_(False)
    seen: list[int] = []
    model[0].register_forward_hook(lambda *_: seen.append(1))
    before = snapshot(model)
    if fails:
        monkeypatch.setattr(block.Block, "contract", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            rules_ntk(model, outputs=0).gram(vectors(4))
    else:
        rules_ntk(model, outputs=0).gram(vectors(4))
    after = snapshot(model)
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=0)
    assert after[1:] == before[1:]
    assert torch.overrides._get_current_function_mode() is None
    assert torch.is_grad_enabled()


def test_batch_statistics_are_refused() -> None:
    with pytest.raises(KernelError, match="training mode"):
        rules_ntk(nn.Sequential(nn.BatchNorm1d(4), head(4)), outputs=0)


def test_outputs_that_depend_on_other_examples_are_refused() -> None:
    model = Model(lambda m, x: m.head(x - x.mean(dim=0)), head=head(4))
    with pytest.raises(KernelError, match="other examples"):
        rules_ntk(model, outputs=0).gram(vectors(4))


def test_a_wrong_rule_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Linear.factor

    def wrong(self: Linear, call: Any, inputs: Tensor, gradients: Tensor, roles: Any) -> Any:
        factor = right(self, call, inputs, gradients, roles)
        assert isinstance(factor, OuterProducts)
        if "bias" in roles:
            factor.gradient = lambda role: (  # the bias forgotten at all positions but one
                factor.gradients_BCKTg[:, :, :, 0].flatten(2)
                if role == "bias"
                else OuterProducts.gradient(factor, role)
            )
        return factor

    monkeypatch.setattr(Linear, "factor", wrong)
    model = Model(
        lambda m, x: m.head(m.first(x).tanh().mean(dim=1)), first=nn.Linear(4, 3), head=head(3)
    )
    assert left(gram(model, vectors(3, 4))) == {"first.bias"}


def test_a_wrong_contraction_fails_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    right = contraction._add_pieces
    monkeypatch.setattr(
        contraction, "_add_pieces", lambda total, left, *rest: right(total, 1.001 * left, *rest)
    )
    with pytest.raises(KernelError, match="failed its check"):
        rules_ntk(twice(), outputs=0).gram(vectors(4))


def product_with(weight: Tensor) -> Model:
    """Return a network of a weight alone."""
    return Model(lambda m, x: x @ m.weight, weight=nn.Parameter(weight))


@pytest.mark.parametrize(
    ("model", "chosen", "wanted"),
    [
        (product_with(torch.randn(4, 2)), None, {"weight"}),
        (
            Model(
                lambda m, x: m.head((x + m.token).tanh()),
                head=head(4),
                token=nn.Parameter(torch.randn(4)),
            ),
            ["token"],
            {"token"},
        ),
    ],
    ids=["product", "token"],
)
@pytest.mark.parametrize("outputs", [1, "class-diagonal", "full"])
def test_a_network_without_any_rule_has_a_kernel(
    model: Model, chosen: list[str] | None, wanted: set[str], outputs: Any
) -> None:
    inputs = vectors(4)
    kernel = rules_ntk(model, outputs=outputs, parameters=chosen, dtype=torch.float64)
    found = kernel.gram(inputs)
    assert left(found) == wanted
    plain = oracle_gram(model, inputs, outputs=outputs, parameters=chosen)
    torch.testing.assert_close(found.values, plain)
    diagonal = torch.diagonal(plain, dim1=-2, dim2=-1)
    torch.testing.assert_close(kernel.diagonal(inputs), diagonal)


def test_torch_func_that_fails_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("Batching rule not implemented for aten::odd\nmore")

    monkeypatch.setattr(fallback, "vmap", fails)
    (note,) = gram(prelu(), vectors(4)).notes
    assert note == (
        "no rule covers every use of 1.weight; their gradients came from single backward passes, "
        "since torch.func failed: Batching rule not implemented for aten::odd"
    )


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
    ids=["python", "cuda", "cpu"],
)
def test_memory_that_ran_out_is_not_taken_for_a_missing_rule(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(fallback, "vmap", fails)
    with pytest.raises(KernelError, match=r"memory ran out on the gradients of .* by 1\.weight"):
        rules_ntk(prelu(), outputs=0).gram(vectors(4))


def test_a_tied_table_that_is_too_large_is_named() -> None:
    table = nn.Embedding(300, 4)
    model = Model(
        lambda m, x: functional.linear(m.table(x).tanh().mean(dim=1), m.table.weight)[:, :2],
        table=table,
    )
    tokens = torch.randint(0, 300, (EXAMPLES, 3))
    assert left(gram(model, tokens)) == set()
    limited = rules_ntk(model, outputs="full", dtype=torch.float64, max_memory=20_000)
    with pytest.raises(KernelError, match=r"most of it by table\.weight"):
        limited.gram(tokens)


NORMED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight_norm": nn.utils.weight_norm,
    "spectral_norm": nn.utils.spectral_norm,
    "parametrised weight_norm": nn.utils.parametrizations.weight_norm,
    "parametrised spectral_norm": nn.utils.parametrizations.spectral_norm,
    "orthogonal": nn.utils.parametrizations.orthogonal,
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", NORMED)
def test_weights_that_are_made_of_others(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    NORMED[name](model[0])
    inputs = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    model.eval()
    # The older kinds keep what they made in the last call, with a graph that torch does not copy.
    model(inputs)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    outputs = model(inputs).detach()
    found = rules_ntk(model, outputs=1).gram(inputs)
    wanted = oracle_gram(model, inputs, outputs=1)
    torch.testing.assert_close(found.values.double(), wanted, rtol=1e-5, atol=1e-6)
    assert any("torch.func" in note for note in found.notes)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert torch.equal(model(inputs), outputs)


def test_a_model_that_cannot_be_copied_is_one_line() -> None:
    model = nn.Sequential(nn.Linear(5, 3))
    model.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(KernelError, match=r"cannot be copied: .*lock.*copy\.deepcopy") as caught:
        rules_ntk(model, outputs=0)
    assert "\n" not in str(caught.value)
