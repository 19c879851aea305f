"""The oracle Gram against derivatives written by hand, and its laws."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distillens.errors import KernelError
from distillens.kernel import oracle_gram

INPUTS, HIDDEN, CLASSES = 4, 6, 3


def two_layer(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(INPUTS, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, CLASSES))


def examples(count: int = 7, seed: int = 1) -> Tensor:
    return torch.randn(count, INPUTS, generator=torch.Generator().manual_seed(seed))


def by_hand(model: nn.Sequential, x: Tensor, other: Tensor) -> np.ndarray:
    """The full block (N, C, M, C) of A·tanh(Wx + b) + c, from its derivatives.

    δ_cc′ (h·h′ + 1) from A and c; Σ_h A_ch A_c′h (1 − h²)(1 − h′²)·(x·x′ + 1) from W and b.
    """
    w, b = (p.detach().double().numpy() for p in model[0].parameters())
    a, _ = (p.detach().double().numpy() for p in model[2].parameters())
    x_ND, other_MD = x.double().numpy(), other.double().numpy()
    h_NH, h_MH = np.tanh(x_ND @ w.T + b), np.tanh(other_MD @ w.T + b)
    outer = np.einsum("nm,cd->ncmd", h_NH @ h_MH.T + 1, np.eye(CLASSES))
    inner = np.einsum("ch,dh,nh,mh->ncmd", a, a, 1 - h_NH**2, 1 - h_MH**2)
    return outer + inner * (x_ND @ other_MD.T + 1)[:, None, :, None]


@pytest.mark.parametrize("rectangular", [False, True])
@pytest.mark.parametrize("vectorised", [True, False])
def test_every_form_equals_the_derivatives_by_hand(rectangular: bool, vectorised: bool):
    model, x = two_layer(), examples()
    other = examples(5, seed=2) if rectangular else None
    wanted = by_hand(model, x, x if other is None else other)
    rows, columns = wanted.shape[0], wanted.shape[2]
    forms = {
        "full": wanted.reshape(rows * CLASSES, columns * CLASSES),
        "class-diagonal": np.einsum("ncmc->cnm", wanted),
        "trace": np.einsum("ncmc->nm", wanted) / CLASSES,
        1: wanted[:, 1, :, 1],
    }
    for outputs, expected in forms.items():
        found = oracle_gram(model, x, other, outputs=outputs, vectorised=vectorised)  # type: ignore[arg-type]
        assert found.dtype == torch.float64
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10, err_msg=str(outputs))


def small_conv() -> nn.Module:
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, CLASSES),
    )
    model(torch.randn(8, 2, 6, 6))  # running statistics that are not 0 and 1
    return model.eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(6, 2, 6, 6, generator=torch.Generator().manual_seed(4))


def test_symmetric_and_positive_semidefinite(images: Tensor):
    gram = oracle_gram(small_conv(), images, outputs="full")
    assert torch.equal(gram, gram.T)
    eigenvalues = torch.linalg.eigvalsh(gram)
    assert eigenvalues.min() >= -1e-12 * eigenvalues.max()
    assert eigenvalues.max() > 0


@pytest.mark.parametrize("outputs", [2, "trace", "class-diagonal", "full"])
@pytest.mark.parametrize("rectangular", [False, True])
def test_blocks_change_nothing(images: Tensor, outputs, rectangular: bool):
    model = small_conv()
    other = images[:5] + 1 if rectangular else None
    whole = oracle_gram(model, images, other, outputs=outputs)
    for block in (1, 4, 100):
        parts = oracle_gram(model, images, other, outputs=outputs, block=block)
        torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)


def test_a_small_budget_recomputes_and_changes_nothing(images: Tensor):
    model = small_conv()
    whole = oracle_gram(model, images, outputs="class-diagonal")
    parameters = sum(p.numel() for p in model.parameters())
    example, gram = 8 * CLASSES * parameters, 8 * CLASSES * 36
    seen: list[int] = []
    counted = copy.deepcopy(model)
    counted.register_forward_hook(lambda *_: seen.append(1))
    tight = oracle_gram(counted, images, outputs="class-diagonal", max_bytes=gram + 4 * example)
    torch.testing.assert_close(tight, whole, rtol=1e-12, atol=1e-12)
    # One look at the outputs, then a pass a pair of blocks of one example: 6·7/2.
    assert len(seen) == 1 + 21
    with pytest.raises(KernelError, match=r"do not fit max_bytes = .* MiB; raise max_bytes"):
        oracle_gram(model, images, outputs="class-diagonal", max_bytes=gram + 4 * example - 1)
    with pytest.raises(KernelError, match="in blocks of 2"):
        oracle_gram(model, images, outputs=0, block=2, max_bytes=8 * 36 + 4 * 8 * parameters)


def test_forms_agree(images: Tensor):
    model = small_conv()
    full = oracle_gram(model, images, outputs="full").reshape(6, CLASSES, 6, CLASSES)
    diagonal = oracle_gram(model, images, outputs="class-diagonal")
    for c in range(CLASSES):
        torch.testing.assert_close(full[:, c, :, c], diagonal[c])
        torch.testing.assert_close(oracle_gram(model, images, outputs=c), diagonal[c])
    torch.testing.assert_close(oracle_gram(model, images, outputs="trace"), diagonal.mean(dim=0))
    torch.testing.assert_close(
        oracle_gram(model, images, images, outputs="trace"), diagonal.mean(dim=0)
    )


def test_parameters_add_up(images: Tensor):
    model = small_conv()
    names = [name for name, _ in model.named_parameters()]
    whole = oracle_gram(model, images, outputs="trace")
    parts = [oracle_gram(model, images, outputs="trace", parameters=[name]) for name in names]
    torch.testing.assert_close(torch.stack(parts).sum(dim=0), whole)


def test_frozen_parameters_are_left_out():
    model, x = two_layer(), examples()
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    found = oracle_gram(model, x, outputs=0)
    hidden = torch.tanh(model[0].double()(x.double()))
    torch.testing.assert_close(found, hidden @ hidden.T + 1)


class Tied(nn.Module):
    """f(x) = W·W·x with one weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(3, 3, bias=False)
        self.second = nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


@pytest.mark.parametrize("vectorised", [True, False])
def test_tied_weights_count_in_both_places(vectorised: bool):
    model, x = Tied(), torch.randn(4, 3, dtype=torch.float64)
    w = model.first.weight.detach().double()
    # ∂(W·W·x)_0/∂W_ab = δ_0a (Wx)_b + W_0a x_b.
    unit = torch.eye(3, dtype=torch.float64)[0]
    jacobian = torch.stack([torch.outer(unit, w @ e) + torch.outer(w[0], e) for e in x]).flatten(1)
    found = oracle_gram(model, x, outputs=0, vectorised=vectorised)
    torch.testing.assert_close(found, jacobian @ jacobian.T)


def test_the_model_is_left_untouched():
    model, x = nn.Sequential(two_layer(), nn.Dropout(0.5)), examples()
    before = copy.deepcopy(model.state_dict())
    model.train()
    first = oracle_gram(model, x, outputs="trace")
    assert torch.equal(first, oracle_gram(model, x, outputs="trace"))  # dropout is off
    assert model.training
    assert model[1].training
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, before[name])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_token_inputs_stay_integers():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(8, 2))
    tokens = torch.tensor([[1, 2], [2, 1], [1, 2]])
    gram = oracle_gram(model, tokens, outputs=0)
    assert torch.equal(gram[0], gram[2])


def test_recurrent_models_pass_example_by_example():
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.body, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x)[0][:, -1])

    gram = oracle_gram(Last(), torch.randn(3, 5, 3), outputs=0, vectorised=False)
    assert torch.linalg.eigvalsh(gram).min() > 0


# --- refusals ---


def test_batchnorm_in_training_mode_is_refused(images: Tensor):
    model = small_conv()
    oracle_gram(model, images, outputs=0)
    with pytest.raises(KernelError, match=r"BatchNorm '1' is in training mode.*call model.eval"):
        oracle_gram(model.train(), images, outputs=0)


def test_batchnorm_without_running_statistics_is_refused(images: Tensor):
    model = nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False), nn.Flatten()).eval()
    with pytest.raises(KernelError, match="track_running_stats"):
        oracle_gram(model, images, outputs=0)


class SquareRoot(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :2] * self.weight.sqrt()


def bad_weight() -> nn.Module:
    model = two_layer()
    with torch.no_grad():
        next(model.parameters())[0, 0] = float("nan")
    return model


@pytest.mark.parametrize(
    ("model", "inputs", "more", "message"),
    [
        (two_layer(), examples(0), {}, r"inputs have shape \(0, 4\); give at least one"),
        (two_layer(), examples() / 0, {}, "inputs hold NaN or infinity"),
        (bad_weight(), examples(), {}, r"0\.weight holds NaN"),
        (SquareRoot(), examples(), {}, "Gram is not finite although"),
        (nn.Sequential(two_layer(), nn.Flatten(0)), examples(), {}, r"returns \(3,\)"),
        (two_layer(), examples(), {"outputs": 3}, "no output 3; the model has outputs 0 to 2"),
        (two_layer(), examples(), {"outputs": "diagonal"}, "unknown outputs 'diagonal'"),
        (two_layer(), examples(), {"parameters": ["0.wieght"]}, "did you mean '0.weight'"),
        (two_layer(), examples(), {"parameters": []}, "no trainable parameters"),
        (two_layer().requires_grad_(False), examples(), {}, "no trainable parameters"),
        (two_layer(), examples(), {"block": 0}, "block is 0"),
        (two_layer(), examples(), {"other": torch.ones(2, 5)}, "one shape"),
        (two_layer(), examples(), {"other": torch.ones(0, 4)}, "other inputs have shape"),
    ],
)
def test_refusals_in_one_line(model: nn.Module, inputs: Tensor, more: dict, message: str):
    with pytest.raises(KernelError, match=message) as caught:
        oracle_gram(model, inputs, **{"outputs": 0, **more})
    assert "\n" not in str(caught.value)


def test_what_vmap_does_not_know_is_said():
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(INPUTS, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) * (2 if x.sum().item() > 0 else 1)

    with pytest.raises(KernelError, match="pass vectorised=False"):
        oracle_gram(Branching(), examples(), outputs=0)
    assert oracle_gram(Branching(), examples(), outputs=0, vectorised=False).shape == (7, 7)
