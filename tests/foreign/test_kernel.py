"""Kernels of networks that others wrote: compared with gradients of the network by plain autograd.

The networks do what published ones do: complex weights, autocast and casts in their forward, inputs
that are changed in place, state that is kept from call to call, outputs in structures.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.ao.nn.quantized.dynamic import Linear as QuantisedLinear
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from distillens.analyses.kernel_complexity import kernel_complexity
from distillens.errors import KernelError, MeasureError, ModelError
from distillens.kernel import EmpiricalNTK, ntk_similarity, oracle_gram

N, LOGIT = 4, 2


class Net(nn.Module):
    """Modules and a forward of their own."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **held: Any) -> None:
        super().__init__()
        self.calculate = forward
        for name, each in held.items():
            if isinstance(each, Tensor) and not isinstance(each, nn.Parameter):
                self.register_buffer(name, each)
            else:
                setattr(self, name, each)

    def forward(self, inputs: Tensor) -> Any:
        """Return whatever the function does."""
        return self.calculate(self, inputs)


def hidden() -> nn.Module:
    return nn.Linear(8, 6)


def head(width: int = 6) -> nn.Module:
    return nn.Linear(width, 3)


def exact_gram(model: nn.Module, inputs: Tensor, logits: Callable[[Any], Tensor]) -> Tensor:
    """Return Σ of products of real gradients, of a fresh copy in float64 for every example."""
    rows = []
    for example in inputs:
        fresh = in_float64(model)
        # Of complex examples too.
        wide = example.to(torch.promote_types(example.dtype, torch.float64))
        one = (wide if example.is_floating_point() or example.is_complex() else example)[None]
        weights = [each for each in fresh.parameters() if each.requires_grad]
        gradients = torch.autograd.grad(
            logits(fresh(one))[0, LOGIT], weights, allow_unused=True, materialize_grads=True
        )
        real = [torch.view_as_real(g) if g.is_complex() else g.to_dense() for g in gradients]
        rows.append(torch.cat([g.flatten() for g in real]))
    return torch.stack(rows) @ torch.stack(rows).T


def in_float64(model: nn.Module) -> nn.Module:
    """Return a copy in float64; `nn.Module.to` would drop imaginary parts."""
    fresh = copy.deepcopy(model).eval()
    kinds = {torch.complex64: torch.complex128, torch.float32: torch.float64}
    fresh._apply(lambda each: each.to(kinds.get(each.dtype, each.dtype)))
    return fresh


def first(outputs: Any) -> Tensor:
    return outputs


def images() -> Tensor:
    return torch.randn(N, 2, 6, 6)


def vectors() -> Tensor:
    return torch.randn(N, 8)


def tokens() -> Tensor:
    return torch.randint(0, 20, (N, 6))


class Spectral(nn.Module):
    """A layer of a Fourier neural operator."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 4, 3, 3, dtype=torch.cfloat))
        self.head = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits of the lowest frequencies."""
        low = torch.fft.rfft2(inputs)[:, :, :3, :3]
        mixed = torch.einsum("bihw,iohw->bohw", low, self.weight)
        return self.head(torch.tanh(torch.fft.irfft2(mixed, s=(6, 6))).mean((2, 3)))


def counting(net: Any, inputs: Tensor) -> Tensor:
    net.calls += 1
    net.seen.add_(1)
    return net.out(inputs) * net.calls * net.seen


def caching(net: Any, inputs: Tensor) -> Tensor:
    if "weight" not in net.cache:
        net.cache["weight"] = net.out.weight * 2
    return functional.linear(inputs, net.cache["weight"])


def hooked() -> nn.Module:
    layer = nn.Linear(8, 6)
    layer.register_forward_hook(
        lambda module, _, out: 2 * out + cast(nn.Linear, module).weight.sum()
    )
    return nn.Sequential(layer, nn.Tanh(), head())


def attended(net: Any, x: Tensor) -> Tensor:
    return net.out((torch.softmax(x @ x.mT + net.mask, -1) @ x).mean(1))


MASK = torch.full((6, 6), -torch.inf).triu(1)

NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], Any]] = {
    "complex linear": (
        lambda: Net(
            lambda net, x: net.out(net.a(x.to(net.a.weight.dtype)).abs()),
            a=nn.Linear(8, 6, dtype=torch.cfloat),
            out=head(),
        ),
        vectors,
        first,
    ),
    "complex inputs": (
        lambda: Net(
            lambda net, x: net.out(net.a(x).abs()),
            a=nn.Linear(8, 6, dtype=torch.cfloat),
            out=head(),
        ),
        lambda: torch.randn(N, 8, dtype=torch.cfloat),
        first,
    ),
    "complex buffer": (
        lambda: Net(
            lambda net, x: net.out((x.to(net.b.dtype) @ net.b).real),
            b=torch.randn(8, 6, dtype=torch.cfloat),
            out=head(),
        ),
        vectors,
        first,
    ),
    "spectral": (Spectral, images, first),
    "changes inputs": (
        lambda: Net(lambda net, x: net.out(x.sub_(0.3).div_(2)), out=head(8)),
        vectors,
        first,
    ),
    "counts": (
        lambda: Net(counting, out=head(8), calls=1, seen=torch.ones(())),
        vectors,
        first,
    ),
    "caches a weight": (lambda: Net(caching, out=head(8), cache={}), vectors, first),
    "hook": (hooked, vectors, first),
    "tuple": (
        lambda: Net(lambda net, x: (net.out(x), x[:, :, None].expand(-1, -1, 3)), out=head(8)),
        vectors,
        lambda outputs: outputs[0],
    ),
    "mapping": (
        lambda: Net(lambda net, x: {"logits": net.out(x), "other": x}, out=head(8)),
        vectors,
        lambda outputs: outputs["logits"],
    ),
    "object": (
        lambda: Net(lambda net, x: SimpleNamespace(logits=net.out(x)), out=head(8)),
        vectors,
        lambda outputs: outputs.logits,
    ),
    "pixels": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.AdaptiveAvgPool2d(1)),
        images,
        lambda outputs: outputs.flatten(1),
    ),
    "sparse embedding": (
        lambda: Net(
            lambda net, x: net.out(net.e(x).mean(1)), e=nn.Embedding(20, 6, sparse=True), out=head()
        ),
        tokens,
        first,
    ),
    "infinite mask": (
        lambda: Net(attended, out=head(8), mask=MASK),
        lambda: torch.randn(N, 6, 8),
        first,
    ),
    "infinite frozen mask": (
        lambda: Net(attended, out=head(8), mask=nn.Parameter(MASK, requires_grad=False)),
        lambda: torch.randn(N, 6, 8),
        first,
    ),
    "infinite logit": (
        lambda: Net(
            lambda net, x: net.out(x).masked_fill(torch.arange(3) == 1, -torch.inf), out=head(8)
        ),
        vectors,
        first,
    ),
    "float32 in between": (
        lambda: Net(
            lambda net, x: net.out(functional.softmax(net.a(x), -1, dtype=x.dtype).type_as(x)),
            a=hidden(),
            out=head(),
        ),
        vectors,
        first,
    ),
    "checkpoint": (
        lambda: Net(
            lambda net, x: net.out(torch.tanh(checkpoint(net.a, x, use_reentrant=False))),
            a=hidden(),
            out=head(),
        ),
        vectors,
        first,
    ),
    "wrapped": (lambda: nn.DataParallel(head(8)), vectors, first),
    "not contiguous": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), head(48)),
        lambda: torch.randn(N, 6, 6, 2).permute(0, 3, 1, 2),
        first,
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_kernel_is_that_of_plain_autograd(name: str) -> None:
    torch.manual_seed(0)
    build, examples, logits = NETWORKS[name]
    model, inputs = build(), examples()
    before = copy.deepcopy(model.state_dict())
    given = inputs.clone()
    exact = exact_gram(model, inputs, logits)
    kernel = EmpiricalNTK(model, outputs=LOGIT, dtype=torch.float64)
    gram = kernel.gram(inputs)
    allowed = 1e-9 * exact.norm()
    assert (gram.values - exact).norm() < allowed
    assert (kernel.diagonal(inputs) - exact.diagonal()).norm() < allowed
    vectorised = name not in ("checkpoint", "spectral")
    found = oracle_gram(model, inputs, outputs=LOGIT, vectorised=vectorised)
    assert (found - exact).norm() < allowed
    torch.testing.assert_close(inputs, given, rtol=0, atol=0)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)


def unrounded(net: Any, x: Tensor) -> Tensor:
    return net.out(torch.tanh(net.a(x)))


def in_autocast(net: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return unrounded(net, x).float()


@torch.autocast("cpu", torch.bfloat16)
def decorated(net: Any, x: Tensor) -> Tensor:
    return unrounded(net, x)


def rounding(net: Any, x: Tensor) -> Tensor:
    return net.out(torch.tanh(net.a(x)).bfloat16().to(torch.float16).float())


def remade(net: Any, x: Tensor) -> Tensor:
    """Recomputed in the backward pass, under the autocast that was on."""
    with torch.autocast("cpu", torch.bfloat16):
        return net.out(torch.tanh(checkpoint(net.a, x, use_reentrant=False)))


class Product(torch.autograd.Function):
    """A product that remembers autocast for its backward pass."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """Return xWᵀ."""
        ctx.save_for_backward(x, weight)
        return x @ weight.T

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """Return the gradients."""
        x, weight = ctx.saved_tensors
        return gradients[0] @ weight, gradients[0].T @ x


def custom(net: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return net.out(torch.tanh(Product.apply(x, net.a.weight) + net.a.bias))


@pytest.mark.parametrize("forward", [in_autocast, decorated, rounding, remade, custom])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_forward_of_less_precision_has_the_kernel_without_rounding(
    forward: Callable[[Any, Tensor], Tensor], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    layers, inputs = {"a": hidden(), "out": head()}, vectors()
    exact = exact_gram(Net(unrounded, **layers), inputs, first)
    gram = EmpiricalNTK(Net(forward, **layers), outputs=LOGIT, dtype=dtype).gram(inputs)
    # Rounding to bfloat16 moves it by 1e-3.
    assert (gram.values - exact).norm() < (1e-6 if dtype == torch.float32 else 1e-9) * exact.norm()
    assert any("the same network computed in" in note for note in gram.notes)


def test_a_kernel_asked_for_in_autocast_is_the_same() -> None:
    torch.manual_seed(0)
    model, inputs = Net(unrounded, a=hidden(), out=head()), vectors()
    plain = EmpiricalNTK(model, outputs=LOGIT).gram(inputs).values
    with torch.autocast("cpu", torch.bfloat16):
        inside = EmpiricalNTK(model, outputs=LOGIT).gram(inputs).values
        assert torch.is_autocast_enabled("cpu")
    torch.testing.assert_close(inside, plain, rtol=0, atol=0)


def test_types_of_the_networks_own_follow_the_kernel() -> None:
    torch.manual_seed(0)
    # A model that is held in float64 and says so, and one that is more precise in between.
    double = Net(lambda net, x: net.out(torch.tanh(net.a(x.double()))), a=hidden(), out=head())
    between = Net(
        lambda net, x: net.out(net.a(x).double().logsumexp(-1, keepdim=True).float() * x[:, :6]),
        a=hidden(),
        out=head(),
    )
    plain = Net(
        lambda net, x: net.out(net.a(x).logsumexp(-1, keepdim=True) * x[:, :6]),
        a=between.a,
        out=between.out,
    )
    inputs = vectors()
    for model, same in ((double.double(), double), (between, plain)):
        exact = exact_gram(same, inputs, first)
        gram = EmpiricalNTK(model, outputs=LOGIT).gram(inputs)
        assert (gram.values - exact).norm() < 1e-6 * exact.norm()
        assert gram.notes == ()


def test_one_output_of_a_vocabulary_takes_no_square_of_it() -> None:
    torch.manual_seed(0)
    room, classes = 100 * 2**20, 32_000
    model, inputs = nn.Linear(8, classes), vectors()
    exact = inputs @ inputs.T + 1
    # A matrix of all pairs of outputs would take 4 GB.
    for outputs, times in ((3, 1), ((3, classes - 1), 2)):
        kernel = EmpiricalNTK(model, outputs=outputs, max_memory=room)
        gram = kernel.gram(inputs)
        torch.testing.assert_close(gram.values, times * exact, rtol=1e-5, atol=1e-5)
        found = kernel.product(inputs)(torch.eye(N))
        torch.testing.assert_close(found, times * exact, rtol=1e-5, atol=1e-5)
        assert gram.plan.memory < room
    with pytest.raises(KernelError, match="too small for a Gram"):
        EmpiricalNTK(model, outputs="full", max_memory=room).gram(inputs)
    other = copy.deepcopy(model)
    assert ntk_similarity(model, other, inputs, probes=1).value == pytest.approx(1.0)


@pytest.mark.parametrize("outputs", ["trace", "class-diagonal"])
def test_kernels_of_many_classes_are_made_some_at_a_time(outputs: Any) -> None:
    torch.manual_seed(0)
    model, inputs, other = nn.Linear(8, 300), vectors(), torch.randn(3, 8)
    kernel = EmpiricalNTK(model, outputs=outputs, max_memory=3 * 2**19)
    gram = kernel.gram(inputs)
    assert gram.plan.sizes.outputs < 300
    exact = inputs @ inputs.T + 1
    torch.testing.assert_close(gram.values, exact.expand_as(gram.values), rtol=1e-5, atol=1e-5)
    across = kernel.gram(inputs, other).values
    exact_across = inputs @ other.T + 1
    torch.testing.assert_close(across, exact_across.expand_as(across), rtol=1e-5, atol=1e-5)
    diagonal = kernel.diagonal(inputs)
    exact_diagonal = exact.diagonal().expand_as(diagonal)
    torch.testing.assert_close(diagonal, exact_diagonal, rtol=1e-5, atol=1e-5)


def test_a_gram_of_many_classes_that_is_wrong_fails_its_check(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from distillens.kernel.assembly.tiles import GramValues

    put = GramValues.put

    def wrong(self: GramValues, row: int, column: int, tile: Tensor, *rest: Any, **more: Any):
        return put(self, row, column, tile * 1.01, *rest, **more)

    monkeypatch.setattr(GramValues, "put", wrong)
    with pytest.raises(KernelError, match="failed its check"):
        EmpiricalNTK(nn.Linear(8, 100), outputs="trace").gram(vectors())


def test_complexity_of_a_network_in_autocast_with_a_masked_class() -> None:
    torch.manual_seed(0)

    def masked(net: Any, x: Tensor) -> Any:
        return {"logits": in_autocast(net, x).masked_fill(torch.arange(3) == 1, -torch.inf)}

    layers, inputs = {"a": hidden(), "out": head()}, vectors()
    targets = {"labels": [1.0, -1.0, 1.0, -1.0]}
    found, plain = (
        kernel_complexity(Net(each, **layers), inputs, targets, outputs=(0, 2))
        for each in (masked, unrounded)
    )
    assert found.targets[0].plain == pytest.approx(plain.targets[0].plain, rel=1e-8)
    assert found.targets[0].adjusted == pytest.approx(plain.targets[0].adjusted, rel=1e-8)
    assert any("torch.autocast" in note for note in found.notes)


def test_a_frozen_parameter_counts_if_it_is_named() -> None:
    torch.manual_seed(0)
    model, inputs = head(8).requires_grad_(False), vectors()
    gram = EmpiricalNTK(model, outputs=LOGIT, parameters=["weight"]).gram(inputs)
    torch.testing.assert_close(gram.values, inputs @ inputs.T)


def test_a_logit_may_be_an_integer_of_numpy_or_torch() -> None:
    torch.manual_seed(0)
    model, inputs = head(8), vectors()
    exact = EmpiricalNTK(model, outputs=LOGIT).gram(inputs).values
    for logit in (np.int64(LOGIT), torch.tensor(LOGIT)):
        given: Any = logit
        assert torch.equal(EmpiricalNTK(model, outputs=given).gram(inputs).values, exact)
        assert (oracle_gram(model, inputs, outputs=given) - exact).abs().max() < 1e-5
    for other in (None, 1.5, (0, 1, 2), (1, 1), "all"):
        wrong: Any = other
        with pytest.raises(KernelError, match="outputs"):
            EmpiricalNTK(model, outputs=wrong)


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(head(8))


def held_by_a_hook() -> nn.Module:
    layer = nn.Linear(8, 3)
    layer.register_forward_hook(lambda _, __, out: cast(Tensor, out) * layer.weight.sum())
    return nn.Sequential(layer)


def reentrant() -> nn.Module:
    return Net(
        lambda net, x: net.out(checkpoint(net.a, net.b(x), use_reentrant=True)),
        a=hidden(),
        b=nn.Linear(8, 8),
        out=head(),
    )


REFUSED: list[tuple[Callable[[], nn.Module], str]] = [
    (scripted, "the model is a TorchScript module"),
    (held_by_a_hook, r"refers to its parameter '0\.weight' by itself"),
    (reentrant, "use_reentrant"),
    (lambda: nn.Linear(8, 3, device="meta"), "weight is on the meta device"),
    (lambda: nn.LazyLinear(3), "weight is not initialised yet"),
    (lambda: nn.Linear(7, 3), r"the model fails on one example of shape \(1, 8\) in float32"),
    (
        lambda: Net(lambda net, x: (net.a(x), net.out(x)), a=head(8), out=head(8)),
        r"returns a tuple of \(1, 3\), \(1, 3\)",
    ),
    (lambda: Net(lambda net, x: net.a(x).to(torch.cfloat), a=head(8)), "complex logits"),
    (
        lambda: Net(lambda net, x: net.a(functional.dropout(x, 0.5)), a=head(8)),
        "outputs differ between two calls",
    ),
    (
        lambda: nn.Sequential(QuantisedLinear(8, 6), head()),
        "module '0' is quantised",
    ),
]


@pytest.mark.parametrize(("build", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_a_network_without_a_kernel_is_refused_in_one_line(
    build: Callable[[], nn.Module], message: str
) -> None:
    torch.manual_seed(0)
    with pytest.raises(KernelError, match=message) as caught:
        EmpiricalNTK(build(), outputs=0).gram(vectors())
    assert "\n" not in str(caught.value)


def text_network(kind: str) -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if kind == "gpt2":
        sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2}
        config = transformers.GPT2Config(vocab_size=12, num_labels=3, **sizes)
        network = transformers.GPT2ForSequenceClassification(config)
    else:
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = transformers.BertConfig(
            vocab_size=12, num_labels=3, intermediate_size=8, max_position_embeddings=8, **sizes
        )
        network = transformers.BertForSequenceClassification(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter) / 3)
    return network.eval()


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_the_kernel_of_a_text_model_does_not_depend_on_padding(kind: str) -> None:
    network = text_network(kind)
    padded = torch.tensor([[2, 5, 6, 7], [2, 5, 6, -1], [2, 8, -1, -1]])
    sentences = [row[row >= 0][None] for row in padded]
    double = copy.deepcopy(network).double()
    parameters = list(double.parameters())
    rows = []
    for ids in sentences:
        logit = double(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, LOGIT]
        found = torch.autograd.grad(logit, parameters, materialize_grads=True)
        rows.append(torch.cat([each.flatten() for each in found]))
    exact = torch.stack(rows) @ torch.stack(rows).T
    kernel = EmpiricalNTK(network, outputs=LOGIT, dtype=torch.float64)
    assert (kernel.gram(padded).values - exact).norm() < 1e-9 * exact.norm()
    assert (kernel.diagonal(padded) - exact.diagonal()).norm() < 1e-9 * exact.norm()
    oracle = oracle_gram(network, padded, outputs=LOGIT, vectorised=False)
    assert (oracle - exact).norm() < 1e-9 * exact.norm()
    assert ntk_similarity(network, network, padded, probes=1).value == pytest.approx(1.0)


def test_tokens_that_may_be_padding_have_no_kernel() -> None:
    network, tokens = text_network("bert"), torch.tensor([[2, 5, 6, 7], [2, 8, 0, 0]])
    for compute in (
        lambda: EmpiricalNTK(network, outputs=LOGIT).gram(tokens),
        lambda: ntk_similarity(network, network, tokens),
        lambda: kernel_complexity(network, tokens, {"y": [1.0, -1.0]}, outputs=LOGIT),
    ):
        with pytest.raises(ModelError, match="tokens end in 0, the pad_token_id"):
            compute()


def test_one_name_may_be_given_as_parameters() -> None:
    torch.manual_seed(0)
    inputs = vectors()
    gram = EmpiricalNTK(head(8), outputs=LOGIT, parameters="weight").gram(inputs)
    torch.testing.assert_close(gram.values, inputs @ inputs.T)


@pytest.mark.parametrize(
    ("targets", "says"),
    [
        ([1.0, -1.0, 1.0, -1.0], "got list"),
        ({"y": ["a", "b", "a", "b"]}, "of type <U1; give real numbers"),
        ({"y": np.ones(4) * 1j}, "of type complex128"),
    ],
)
def test_targets_that_are_no_numbers_by_name_are_refused(targets: Any, says: str) -> None:
    with pytest.raises(MeasureError, match=says):
        kernel_complexity(head(8), vectors(), targets, outputs=LOGIT)
    with pytest.raises(KernelError, match="got function"):
        EmpiricalNTK(lambda x: x, outputs=LOGIT)  # type: ignore[arg-type]


def test_targets_may_be_tensors_of_any_type() -> None:
    torch.manual_seed(0)
    model, inputs = head(8), vectors()
    values = torch.tensor([1.0, -1.0, 1.0, -1.0])
    found = [
        kernel_complexity(model, inputs, {"y": each}, outputs=LOGIT).targets[0].plain
        for each in (values.numpy(), values.bfloat16(), values.clone().requires_grad_())
    ]
    assert found[0] == found[1] == found[2]
