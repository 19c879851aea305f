"""Labels, outputs and logits as other people's loaders and networks give them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import distillens as dl
from distillens.data import Batch, LoaderBatches
from distillens.errors import (
    DataError,
    DistillensError,
    ModelError,
    SupervisionError,
    TrainingError,
)
from distillens.models import ModelRecipe, build_model
from distillens.supervision import (
    AveragedTeacher,
    Distillation,
    Features,
    FixedTeacher,
    Mixed,
    OneHot,
    OnlineTeacher,
    RecordedTeacher,
    Supervision,
    TeacherCheckpoint,
    cross_entropy,
    decoupled,
    dist,
    distillation_cross_entropy,
    distillation_squared_error,
    squared_error,
)
from distillens.training import TrainingRecipe, fit

RECIPE = TrainingRecipe(epochs=1, learning_rate=0.05)
X = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(32) % 5


def linear(seed: int, outputs: int = 5) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(8, outputs)


def loader(labels: Tensor = Y, inputs: Tensor = X) -> DataLoader[Any]:
    return DataLoader(TensorDataset(inputs, labels), batch_size=16)


def batch_of(labels: Tensor, mask: Tensor | None = None) -> Batch:
    return Batch(torch.zeros(len(labels), 1), labels, torch.arange(len(labels)), mask=mask)


def dist_loss(f: Tensor, g: Tensor, y: Tensor, tau: float, mask: Tensor | None) -> Tensor:
    return dist(f, g, tau)


class Given:
    """A teacher with fixed logits."""

    def __init__(self, logits: Any) -> None:
        self.given = logits

    def advance(self, batch: Batch, step: int) -> None: ...

    def logits(self, batch: Batch) -> Any:
        return self.given

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Returning(nn.Module):
    """A linear network whose output is put into another form."""

    def __init__(self, form: Callable[[Tensor, Tensor], Any], seed: int = 1) -> None:
        super().__init__()
        self.inner = linear(seed)
        self.form, self.width = form, seed

    def forward(self, x: Tensor) -> Any:
        return self.form(self.inner(x), x.repeat(1, self.width))


def trained(model: nn.Module, supervision: Supervision, batches: Any = None) -> tuple[Any, Tensor]:
    """Return the record of an epoch and the weights after it."""
    record = fit(model, supervision, batches or LoaderBatches(loader()), RECIPE).records[0]
    return record, torch.cat([each.detach().flatten() for each in model.parameters()])


@pytest.mark.parametrize(
    "form",
    [
        lambda y: y[:, None],
        lambda y: y[:, None, None],
        lambda y: y.to(torch.uint8),
        lambda y: y.to(torch.int32),
        lambda y: y.to(torch.int16)[:, None],
    ],
)
@pytest.mark.parametrize("loss", ["cross-entropy", "squared-error"])
def test_class_labels_of_any_shape_and_integer_type_train_alike(form: Any, loss: Any) -> None:
    plain = trained(linear(1), OneHot(loss))
    other = trained(linear(1), OneHot(loss), LoaderBatches(loader(form(Y))))
    assert other[0].loss == plain[0].loss
    assert other[0].accuracy == plain[0].accuracy
    assert torch.equal(other[1], plain[1])


class Plain:
    """A source of batches that is no LoaderBatches."""

    def __init__(self, labels: Tensor, mask: Tensor) -> None:
        self.batch = Batch(X, labels, torch.arange(32), mask=mask)

    def __len__(self) -> int:
        return 1

    def epoch(self, epoch: int) -> Any:
        yield self.batch


def test_batches_of_another_source_are_understood_likewise() -> None:
    mask = torch.arange(32) % 4 > 0
    plain = trained(linear(1), OneHot(), Plain(Y, mask))
    other = trained(linear(1), OneHot(), Plain(Y[:, None].to(torch.uint8), mask.long()))
    assert other[0].loss == plain[0].loss
    assert other[0].accuracy == plain[0].accuracy
    assert torch.equal(other[1], plain[1])
    with pytest.raises(DataError, match=r"labels\.long\(\)"):
        trained(linear(1, 1), Distillation(FixedTeacher(linear(2, 1))), Plain(Y.float(), mask))


def test_boolean_labels_of_one_output_are_0_and_1() -> None:
    logits, yes = torch.tensor([[0.3], [-2.0]]), torch.tensor([True, False])
    assert torch.equal(cross_entropy(logits, yes), cross_entropy(logits, yes.long()))


@pytest.mark.parametrize(
    "labels",
    [
        Y.float(),
        Y.float()[:, None],
        nn.functional.one_hot(Y, 5),
        nn.functional.one_hot(Y, 5).float(),
        torch.randn(32, 5).softmax(-1),
        torch.zeros(32, 4, 4).long(),
        Y.to(torch.complex64),
    ],
    ids=["float", "column", "one-hot", "multi-hot", "soft", "dense", "complex"],
)
@pytest.mark.parametrize("outputs", [1, 5])
def test_labels_that_are_no_classes_are_refused(labels: Tensor, outputs: int) -> None:
    teacher = FixedTeacher(linear(2, outputs))
    for supervision in (OneHot(), OneHot("squared-error"), Distillation(teacher)):
        with pytest.raises(DataError, match="supported are integer class labels"):
            fit(linear(1, outputs), supervision, LoaderBatches(loader(labels)), RECIPE)
        with pytest.raises(DataError, match="supported are integer class labels"):
            supervision.loss(torch.zeros(32, outputs), replace_inputs(labels), 0)


def replace_inputs(labels: Tensor) -> Batch:
    return Batch(X, labels, torch.arange(32))


@pytest.mark.parametrize(("outputs", "label"), [(5, 255), (5, -1), (5, 5), (1, 2)])
def test_a_label_outside_the_classes_is_named(outputs: int, label: int) -> None:
    labels = torch.where(torch.arange(32) == 7, label, torch.zeros_like(Y))
    for supervision in (OneHot(), OneHot("squared-error"), OneHot(smoothing=0.1)):
        with pytest.raises(DataError, match=f"a label is {label}, outside 0 to"):
            fit(linear(1, outputs), supervision, LoaderBatches(loader(labels)), RECIPE)
    with pytest.raises(DataError, match=f"a label is {label}, outside 0 to"):
        cross_entropy(torch.zeros(32, outputs), labels)


def test_a_label_outside_the_classes_is_also_named_where_nobody_waits_for_the_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # On a GPU the loss cannot look at the labels: it becomes NaN, and the loop looks them up later.
    monkeypatch.setattr("distillens.supervision.losses._all_known", lambda flags: None)
    plain = trained(linear(1), OneHot())
    monkeypatch.undo()
    assert plain[0].loss == pytest.approx(trained(linear(1), OneHot())[0].loss)
    monkeypatch.setattr("distillens.supervision.losses._all_known", lambda flags: None)
    labels = torch.where(torch.arange(32) == 20, 255, Y)
    with pytest.raises(DataError, match="a label is 255, outside 0 to 4"):
        trained(linear(1), OneHot(), LoaderBatches(loader(labels)))


def test_losses_of_single_examples_are_vectorised_by_vmap() -> None:
    z, g = torch.randn(2, 4, 3)
    y = torch.arange(4) % 3
    each = torch.func.vmap(torch.func.grad(lambda f, label: cross_entropy(f[None], label[None])))
    expected = z.softmax(-1) - nn.functional.one_hot(y, 3)
    torch.testing.assert_close(each(z, y), expected)
    soft = torch.func.vmap(
        torch.func.grad(lambda f, t: distillation_cross_entropy(f[None], t[None], 1.0))
    )
    torch.testing.assert_close(soft(z, g), z.softmax(-1) - g.softmax(-1))


def test_the_distillation_loss_has_a_second_derivative() -> None:
    z, g = torch.randn(2, 1, 3, dtype=torch.float64)
    found = torch.autograd.functional.hessian(
        lambda f: distillation_cross_entropy(f, g, 1.0), z
    ).reshape(3, 3)
    p = z.softmax(-1)[0]
    torch.testing.assert_close(found, torch.diag(p) - p[:, None] * p)


def test_labels_of_minus_100_do_not_count() -> None:
    labels = torch.where(torch.arange(32) % 3 == 0, -100, Y)
    logits = torch.randn(32, 5)
    expected = nn.functional.cross_entropy(logits, labels)
    torch.testing.assert_close(cross_entropy(logits, labels), expected)
    mixed = Mixed(OneHot(), Distillation(FixedTeacher(linear(2)), 4.0), 0.5)
    whole, split = (
        fit(
            linear(1),
            mixed,
            LoaderBatches(loader(labels)),
            RECIPE.model_copy(update={"accumulate": n}),
        )
        for n in (1, 3)
    )
    kept = labels != -100
    assert whole.records[0].accuracy <= 1
    assert split.records[0].loss == pytest.approx(whole.records[0].loss, rel=1e-5)
    first = linear(1)
    chosen = Batch(X[:16][kept[:16]], Y[:16][kept[:16]], torch.arange(int(kept[:16].sum())))
    of_chosen = mixed.loss(first(chosen.inputs), chosen, 0)
    batch = next(LoaderBatches(loader(labels)).epoch(0))
    torch.testing.assert_close(mixed.loss(first(batch.inputs), batch, 0), of_chosen)


class Named(NamedTuple):
    logits: Tensor
    features: Tensor


@dataclass
class Held:
    logits: Tensor
    features: Tensor


FORMS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "global pooling": lambda z, x: z[:, :, None, None],
    "pooling over time": lambda z, x: z[:, :, None],
    "one position": lambda z, x: z[:, None],
    "dict": lambda z, x: {"features": x, "logits": z},
    "object": lambda z, x: Held(z, x),
    "named tuple": lambda z, x: Named(z, x),
    "tuple": lambda z, x: (z, x),
    "features first": lambda z, x: (x, z),
    "tuple with maps": lambda z, x: (z, [x], x.reshape(len(x), -1, 2, 2), torch.tensor(0.5)),
    "pooled in a tuple": lambda z, x: (z[:, :, None, None], x),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_logits_are_found_in_what_a_network_returns(form: Callable[..., Any]) -> None:
    def supervision(teacher: nn.Module) -> Supervision:
        return Mixed(OneHot(), Distillation(FixedTeacher(teacher), 4.0), 0.5)

    plain = trained(linear(1), supervision(linear(2)))
    given = trained(Returning(form), supervision(Returning(form, 2)))
    assert given[0].loss == plain[0].loss
    assert given[0].accuracy == plain[0].accuracy
    assert torch.equal(given[1], plain[1])


def test_the_losses_take_what_a_network_returns() -> None:
    z, g, y = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    assert torch.equal(cross_entropy({"logits": z}, y), cross_entropy(z, y))  # type: ignore[arg-type]
    plain = distillation_cross_entropy(z, g, 2.0)
    held = Held(z, z), Held(g, g)
    assert torch.equal(distillation_cross_entropy(*held, 2.0), plain)  # type: ignore[arg-type]


def test_a_number_of_classes_decides_between_elements_of_a_tuple() -> None:
    student = Returning(lambda z, x: (x, z))
    with pytest.raises(ModelError, match=r"\(16, 8\), \(16, 5\), in which several elements"):
        trained(student, OneHot())
    record, _ = trained(student, OneHot(), LoaderBatches(loader(), classes=5))
    assert record.loss == trained(linear(1), OneHot())[0].loss


@pytest.mark.parametrize(
    ("form", "error", "says"),
    [
        (lambda z, x: z.argmax(1), ModelError, "int64"),
        (lambda z, x: {"out": z}, ModelError, "without logits"),
        (lambda z, x: (x, x), ModelError, "several elements"),
        (lambda z, x: (x[:3],), ModelError, "no element"),
        (lambda z, x: z[:, :, None, None].expand(-1, -1, 4, 4), DataError, "dense"),
        (lambda z, x: z[:-1], DataError, r"\(15, 5\)"),
    ],
)
def test_outputs_without_logits_are_refused(form: Any, error: Any, says: str) -> None:
    for student, teacher in (
        (Returning(form), linear(2)),
        (linear(1), Returning(form, 2)),
    ):
        with pytest.raises(error, match=says):
            trained(student, Distillation(FixedTeacher(teacher), 4.0))


def test_a_vector_of_outputs_is_the_form_with_one_output() -> None:
    plain = trained(linear(1, 1), OneHot(), LoaderBatches(loader(Y % 2)))
    squeezed = nn.Sequential(linear(1, 1), nn.Flatten(0))
    assert torch.equal(trained(squeezed, OneHot(), LoaderBatches(loader(Y % 2)))[1], plain[1])


def test_a_teacher_of_ones_own_needs_no_state() -> None:
    """Nothing but a stored training asks for it."""

    class Given:
        def advance(self, batch: Batch, step: int) -> None:
            pass

        def logits(self, batch: Batch) -> Tensor:
            return torch.ones(len(batch), 5)

    given: Any = Given()
    z = torch.zeros(4, 5, requires_grad=True)
    batch = Batch(torch.zeros(4, 8), torch.arange(4), torch.arange(4))
    loss = Distillation(given, 2.0).loss(z, batch, 0)
    assert loss.item() == pytest.approx(4 * math.log(5))


def test_a_model_of_a_recipe_may_return_a_tuple(tmp_path: Path) -> None:
    (tmp_path / "pairs.py").write_text(
        "from torch import nn\n"
        "class Pair(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.inner = nn.Linear(8, 5)\n"
        "    def forward(self, x):\n"
        "        return self.inner(x), x\n"
    )
    recipe = ModelRecipe(name="pairs:Pair")
    recipe.look_in(tmp_path)
    model: Any = build_model(recipe, (8,), 5, seed=0, trust_code=True)
    assert torch.equal(model(X), model.inner(X))
    with pytest.raises(ModelError, match="several elements can be the logits"):
        build_model(recipe, (8,), 7, seed=0, trust_code=True)


def reference(name: str, z: Tensor, g: Tensor, y: Tensor, tau: float) -> Tensor:
    """Return a loss as its paper writes it, in float64."""
    p, q = (z / tau).log_softmax(-1), (g / tau).log_softmax(-1)
    if name == "distillation":
        return -(tau**2) * (q.exp() * p).sum(-1).mean()
    if name == "squared error":
        return 0.5 * tau * (q.exp() - z).square().sum(-1).mean()
    if name == "smoothing":
        p = z.log_softmax(-1)
        return -(0.9 * p.gather(1, y[:, None])[:, 0] + 0.1 * p.mean(-1)).mean()
    if name == "dkd":
        label = nn.functional.one_hot(y, z.shape[1]).bool()
        parts = []
        for each in (p, q):
            others = each.masked_fill(label, -1e300).log_softmax(-1)
            rest = each.masked_fill(label, -torch.inf).logsumexp(-1)
            parts.append((torch.stack([each[label], rest], -1), others))
        target = (parts[1][0].exp() * (parts[1][0] - parts[0][0])).sum(-1)
        other = (parts[1][1].exp() * (parts[1][1] - parts[0][1]).masked_fill(label, 0)).sum(-1)
        return tau**2 * (target + 8 * other).mean()
    pairs = [(p.exp(), q.exp()), (p.exp().T, q.exp().T)]
    centred = [[each - each.mean(-1, keepdim=True) for each in pair] for pair in pairs]
    apart = [1 - torch.cosine_similarity(*pair, dim=-1, eps=0).mean() for pair in centred]
    return tau**2 * (apart[0] + apart[1])


LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor, float], Tensor]] = {
    "distillation": lambda z, g, y, tau: distillation_cross_entropy(z, g, tau),
    "squared error": lambda z, g, y, tau: distillation_squared_error(z, g, tau),
    "smoothing": lambda z, g, y, tau: cross_entropy(z, y, smoothing=0.1),
    "dkd": lambda z, g, y, tau: decoupled(z, g, y, tau),
    "dist": lambda z, g, y, tau: dist(z, g, tau),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_are_those_of_float64_also_near_convergence(
    name: str, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 32000, (3,), generator=generator)
    cases = (12, 4.0, 0.001), (3, 4.0, 0.003), (3, 16.0, 0.001), (3, 16.0, 1.0)
    for scale, tau, noise in cases:
        drawn = torch.randn(2, 3, 32000, generator=generator)
        g = (scale * drawn[0]).to(dtype)
        z = (g.float() + noise * drawn[1]).to(dtype)
        exact = z.double().requires_grad_()
        reference(name, exact, g.double(), y, tau).backward()
        found: list[Tensor] = []
        student = z.clone().requires_grad_()
        student_float = student.float()
        # The gradient before it is rounded to the type of the logits.
        student_float.register_hook(found.append)
        LOSSES[name](student_float, g, y, tau).backward()
        assert exact.grad is not None
        off = (found[0].double() - exact.grad).norm() / exact.grad.norm()
        assert float(off) < 0.01, (tau, noise)
        assert student.grad is not None
        assert student.grad.dtype == dtype
        rounded = z.clone().requires_grad_()
        LOSSES[name](rounded, g, y, tau).backward()
        assert torch.equal(rounded.grad, student.grad)  # type: ignore[arg-type]


def test_a_student_sure_of_the_labels_still_has_their_gradient() -> None:
    z = torch.zeros(2, 50)
    z[:, 3] = 20.0
    y = torch.tensor([3, 3])
    exact, student = z.double().requires_grad_(), z.clone().requires_grad_()
    nn.functional.cross_entropy(exact, y).backward()
    cross_entropy(student, y).backward()
    torch.testing.assert_close(student.grad, exact.grad, check_dtype=False, rtol=1e-5, atol=0)


@pytest.mark.parametrize("seen", [torch.bfloat16, torch.float16])
def test_a_function_of_the_user_gets_float32_logits_that_are_not_rounded(
    seen: torch.dtype,
) -> None:
    teacher = torch.randn(4, 3)
    kinds: list[Any] = []

    def loss(f: Tensor, g: Tensor, y: Tensor, tau: float, mask: Tensor | None) -> Tensor:
        kinds.append((f.dtype, g.dtype, (f @ g.T).dtype, torch.equal(g, teacher)))
        return (f * g).mean()

    with torch.autocast("cpu", torch.bfloat16):
        Distillation(Given(teacher), 1.0, loss).loss(
            torch.randn(4, 3).to(seen), batch_of(torch.zeros(4).long()), 0
        )
    assert kinds == [(torch.float32, torch.float32, torch.float32, True)]


def masked(logits: Tensor, classes: int) -> Tensor:
    """Return logits with so many more classes, all of them masked."""
    return nn.functional.pad(logits, (0, classes), value=-torch.inf)


MASKED: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    **{name: lambda z, g, y, f=f: f(z, g, y, 4.0) for name, f in LOSSES.items()},
    "cross-entropy": lambda z, g, y: cross_entropy(z, y),
    "label squares": lambda z, g, y: squared_error(z, y),
    "smoothed squares": lambda z, g, y: squared_error(z, y, smoothing=0.1),
    "mixed": lambda z, g, y: Mixed(OneHot(), Distillation(Given(g), 2.0), 0.5).loss(
        z, batch_of(y), 0
    ),
}


@pytest.mark.parametrize("name", MASKED)
def test_classes_that_both_networks_mask_change_nothing(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    z, g = torch.randn(2, 6, 3, generator=generator)
    y = torch.arange(6) % 3
    plain, wide = z.clone().requires_grad_(), masked(z, 2).requires_grad_()
    expected = MASKED[name](plain, g, y)
    found = MASKED[name](wide, masked(g, 2), y)
    torch.testing.assert_close(found, expected)
    expected.backward()
    found.backward()
    assert wide.grad is not None
    torch.testing.assert_close(wide.grad[:, :3], plain.grad)
    assert not wide.grad[:, 3:].any()


def test_a_class_that_the_student_alone_masks_has_an_infinite_loss() -> None:
    g, z = torch.zeros(1, 3), torch.tensor([[0.0, 1.0, -torch.inf]])
    assert distillation_cross_entropy(z, g, 1.0) == torch.inf
    assert cross_entropy(z, torch.tensor([2])) == torch.inf
    student = torch.zeros(1, 3, requires_grad=True)
    distillation_cross_entropy(student, z, 1.0).backward()
    expected = student.detach().softmax(-1) - z.softmax(-1)
    torch.testing.assert_close(student.grad, expected)
    assert torch.isfinite(RecordedTeacher(z).logits(batch_of(torch.tensor([0]))).amax())


@pytest.mark.parametrize("hole", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "supervision",
    [
        OneHot(),
        OneHot("squared-error"),
        OneHot(smoothing=0.1),
        OneHot("squared-error", 0.1),
        Distillation(RecordedTeacher(np.zeros((2, 4, 3))), 2.0),
        Distillation(RecordedTeacher(np.zeros((2, 4, 3))), 2.0, "squared-error"),
        Distillation(
            RecordedTeacher(np.zeros((2, 4, 3))), 2.0, lambda f, g, y, t, m: (f - g).square().mean()
        ),
    ],
)
def test_positions_outside_the_mask_may_hold_anything(
    supervision: Supervision, hole: float
) -> None:
    mask = torch.tensor([[True, True, False, False], [True, False, False, False]])
    z = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.where(mask, 1, 99)
    clean = z.masked_fill(~mask[..., None], 0).requires_grad_()
    dirty = z.masked_fill(~mask[..., None], hole).requires_grad_()
    losses = [supervision.loss(each, batch_of(labels, mask), 0) for each in (clean, dirty)]
    assert torch.equal(*losses)
    for loss in losses:
        loss.backward()
    assert dirty.grad is not None
    assert torch.equal(dirty.grad, clean.grad)  # type: ignore[arg-type]
    assert not dirty.grad[~mask].any()
    whole_numbers = batch_of(labels, mask.long())
    assert torch.equal(supervision.loss(dirty, whole_numbers, 0), losses[0])


def test_rows_of_named_losses_outside_the_mask_do_not_count() -> None:
    z, g, y = torch.randn(6, 4), torch.randn(6, 4), torch.arange(6) % 4
    mask = torch.tensor([True, True, True, True, False, False])
    holes = z.masked_fill(~mask[:, None], torch.nan)
    torch.testing.assert_close(dist(holes, g, 2.0, mask=mask), dist(z[:4], g[:4], 2.0))
    torch.testing.assert_close(
        decoupled(holes, g, y, 2.0, mask=mask), decoupled(z[:4], g[:4], y[:4], 2.0)
    )


def test_a_mask_of_weights_is_refused() -> None:
    with pytest.raises(DataError, match=r"mask\.bool\(\)"):
        cross_entropy(torch.zeros(2, 3), torch.zeros(2).long(), torch.tensor([0.5, 1.0]))


def test_masked_logits_and_recorded_rows_with_padding_are_taken() -> None:
    rows = torch.full((2, 3, 4), torch.nan)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    rows[mask] = 1.0
    found = RecordedTeacher(rows).logits(batch_of(torch.zeros(2, 3).long(), mask))
    assert torch.equal(found[mask], rows[mask])
    with pytest.raises(SupervisionError, match="NaN"):
        RecordedTeacher(rows).logits(batch_of(torch.zeros(2, 3).long()))


class Uncertain(nn.Module):
    """A network with dropout and running statistics."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(nn.Linear(8, 6), nn.Dropout(0.5), nn.Linear(6, 5))
        self.seen: Tensor
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += 1
        return self.layers(x)


@pytest.mark.parametrize("accumulate", [2, 3])
def test_a_loss_that_compares_examples_is_the_same_in_micro_batches(accumulate: int) -> None:
    found = []
    for parts in (1, accumulate):
        student = linear(1)
        supervision = Mixed(OneHot(), Distillation(FixedTeacher(linear(2)), 4.0, dist_loss), 0.5)
        recipe = RECIPE.model_copy(update={"accumulate": parts, "epochs": 2})
        history = fit(student, supervision, LoaderBatches(loader()), recipe)
        found.append((student.weight.detach(), history.records[1]))
    torch.testing.assert_close(found[1][0], found[0][0])
    assert found[1][1].loss == pytest.approx(found[0][1].loss, rel=1e-5)
    assert found[1][1].accuracy == found[0][1].accuracy


def test_whole_and_separate_losses_draw_the_same_random_numbers() -> None:
    def plain(f: Tensor, g: Tensor, y: Tensor, tau: float, mask: Tensor | None) -> Tensor:
        return distillation_cross_entropy(f, g, tau, mask)

    def declared(*given: Any) -> Tensor:
        return plain(*given)

    declared.across_examples = False  # type: ignore[attr-defined]
    found = []
    for loss in (plain, declared):
        student = Uncertain()
        torch.manual_seed(5)
        supervision = Distillation(FixedTeacher(linear(2)), 4.0, loss)
        fit(
            student,
            supervision,
            LoaderBatches(loader()),
            RECIPE.model_copy(update={"accumulate": 4}),
        )
        found.append((next(student.parameters()).detach(), student.seen, torch.rand(3)))
    torch.testing.assert_close(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert torch.equal(found[0][2], found[1][2])


def test_features_of_micro_batches_that_are_compared_are_refused() -> None:
    student, teacher = nn.Sequential(linear(1)), nn.Sequential(linear(2))

    def compared(one: Tensor, other: Tensor) -> Tensor:
        return (one @ one.T - other @ other.T).square().mean()

    recipe = RECIPE.model_copy(update={"accumulate": 2})
    with Features(OneHot(), student, teacher, {"0": "0"}, loss=compared) as features:
        with pytest.raises(TrainingError, match="across_examples = False"):
            fit(student, features, LoaderBatches(loader()), recipe)
        fit(student, features, LoaderBatches(loader()), RECIPE)


def test_a_loss_that_compares_examples_is_refused_in_several_processes() -> None:
    from distillens.training.step import check_parts

    with pytest.raises(TrainingError, match="2 processes"):
        check_parts(Distillation(Given(torch.zeros(2, 2)), 1.0, dist_loss), 1, 2)
    check_parts(Distillation(Given(torch.zeros(2, 2)), 1.0), 4, 2)


def test_features_in_bfloat16_are_compared_in_float32() -> None:
    maps = torch.randn(2, 4, 3, 3).bfloat16()
    other = torch.randn(2, 4, 3, 3)
    found = dl.supervision.attention_transfer(maps, other)
    assert found.dtype == torch.float32
    assert torch.equal(found, dl.supervision.attention_transfer(maps.float(), other))


def test_an_average_of_teachers_is_not_rounded_to_their_type() -> None:
    rows = torch.randn(2, 3).bfloat16()
    average = dl.supervision.AveragedTeacher([RecordedTeacher(rows)] * 3, [1.0, 1.0, 1.0])
    torch.testing.assert_close(average.logits(batch_of(torch.tensor([0, 1]))), rows.float())


@pytest.mark.parametrize("layout", ["loader", "list"])
def test_a_loader_is_read_as_batches(layout: str) -> None:
    given: Any = loader() if layout == "loader" else list(loader())
    assert trained(linear(1), OneHot(), given)[0].loss == trained(linear(1), OneHot())[0].loss


def test_a_module_is_a_fixed_teacher_wherever_a_teacher_is_wanted() -> None:
    fixed = trained(linear(1), Distillation(FixedTeacher(linear(2)), 2.0))[1]
    module = linear(2)
    online = OnlineTeacher([TeacherCheckpoint(3, lambda: linear(2))], 2)
    for teacher in (module, AveragedTeacher([module], [2.0]), online):
        assert torch.equal(trained(linear(1), Distillation(teacher, 2.0))[1], fixed)


WRONG: dict[str, Callable[[], Any]] = {
    "unknown loss 'mse'; known: cross-entropy, squared-error": lambda: OneHot("mse"),  # type: ignore[arg-type]
    "unknown loss 'kl'": lambda: Distillation(linear(2), loss="kl"),  # type: ignore[arg-type]
    "got function; give a module": lambda: Distillation(lambda x: x),  # type: ignore[arg-type]
    "got NoneType; give logits": lambda: FixedTeacher(None),  # type: ignore[arg-type]
    "positive and finite, got '4'": lambda: Distillation(linear(2), "4"),  # type: ignore[arg-type]
    "positive and finite, got 0": lambda: distillation_cross_entropy(X, X, 0),
    "positive and finite, got -1.0": lambda: distillation_squared_error(X, X, -1.0),
    "positive and finite, got -2.0": lambda: decoupled(X, X, Y, -2.0),
    "positive and finite, got -3.0": lambda: dist(X, X, -3.0),
    "got 2.0": lambda: cross_entropy(X, Y, smoothing=2.0),
    "got -0.1": lambda: squared_error(X, Y, smoothing=-0.1),
    r"weights \[nan\]": lambda: AveragedTeacher([linear(2)], [float("nan")]),
    "must have the same classes": lambda: AveragedTeacher(
        [linear(2), linear(2, 1)], [1.0, 1.0]
    ).logits(Batch(X, Y, Y)),
    "student_steps must be at least 1": lambda: OnlineTeacher(
        [TeacherCheckpoint(3, lambda: linear(2))], 0
    ),
    "teacher logits cannot be read: a list": lambda: RecordedTeacher([[1.0, 2.0], [1.0]]),  # type: ignore[arg-type]
    "give log": lambda: RecordedTeacher(X.softmax(-1)),
    "remove its softmax": lambda: trained(
        linear(1), Distillation(nn.Sequential(linear(2), nn.Softmax(-1)))
    ),
    "a supervision is wanted, got Linear": lambda: Mixed(OneHot(), linear(2), 0.5),  # type: ignore[arg-type]
    "a supervision is wanted, got NoneType": lambda: Features(None, X, X, {"0": "0"}),  # type: ignore[arg-type]
    "function of two tensors, got 'mse'": lambda: Features(OneHot(), X, X, {"0": "0"}, loss="mse"),  # type: ignore[arg-type]
    "the recipe is a dict": lambda: fit(linear(1), OneHot(), loader(), {}),  # type: ignore[arg-type]
    "a supervision is wanted, got CrossEntropyLoss": lambda: trained(
        linear(1),
        nn.CrossEntropyLoss(),  # type: ignore[arg-type]
    ),
    "mean over examples; got shape": lambda: trained(
        linear(1), Distillation(linear(2), 2.0, lambda f, g, y, tau, mask: (f - g).sum(-1))
    ),
    "no label of epoch 1 counts": lambda: trained(
        linear(1), OneHot(), loader(torch.full_like(Y, -100))
    ),
    "indices of a batch are float32": lambda: trained(linear(1), OneHot(), [(X, Y, Y + 0.5)]),
    r"indices of a batch are int64 of shape \(16,\) for 32 labels": lambda: trained(
        linear(1), OneHot(), [(X, Y, Y[:16])]
    ),
}


@pytest.mark.parametrize("says", WRONG)
def test_what_fits_no_training_is_refused_in_one_line(says: str) -> None:
    with pytest.raises(DistillensError, match=says) as caught:
        WRONG[says]()
    assert "\n" not in str(caught.value)


def test_one_hot_rows_and_log_probabilities_are_logits() -> None:
    RecordedTeacher(torch.eye(4))
    RecordedTeacher(X.log_softmax(-1))


def test_labels_of_minus_100_do_not_count_in_any_source_and_any_loss() -> None:
    labels = torch.where(torch.arange(32) % 3 == 0, -100, Y)
    kept = labels != -100

    class Unmasked(Plain):
        def __init__(self, mask: Tensor | None) -> None:
            self.batch = Batch(X, labels, torch.arange(32), mask=mask)

    for loss in ("cross-entropy", decoupled_loss):
        supervision = Mixed(OneHot(), Distillation(linear(2), 4.0, loss), 0.5)  # type: ignore[arg-type]
        plain, other = (trained(linear(1), supervision, Unmasked(mask)) for mask in (kept, None))
        assert other[0].loss == plain[0].loss
        assert other[0].accuracy == plain[0].accuracy
        assert torch.equal(other[1], plain[1])
    z, g = torch.randn(2, 32, 5)
    found, of_kept = decoupled(z, g, labels, 2.0), decoupled(z[kept], g[kept], labels[kept], 2.0)
    torch.testing.assert_close(found, of_kept)


def decoupled_loss(f: Tensor, g: Tensor, y: Tensor, tau: float, mask: Tensor | None) -> Tensor:
    return decoupled(f, g, y, tau, mask=mask)


class Inference(nn.Module):
    """A teacher whose forward runs in inference mode, as published ones do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = linear(2)

    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        """Return logits that no backward pass may keep."""
        return self.inner(x)


def test_a_teacher_may_run_in_inference_mode() -> None:
    def product(f: Tensor, g: Tensor, *_: Any) -> Tensor:
        return (f * g).mean()

    def featured(teacher: Any, layer: str) -> Tensor:
        student = nn.Sequential(linear(1))
        return trained(student, Features(OneHot(), student, teacher, {"0": layer}, loss=product))[1]

    for loss in ("cross-entropy", product):
        plain, inference = (
            trained(linear(1), Distillation(teacher, 2.0, loss))[1]  # type: ignore[arg-type]
            for teacher in (linear(2), Inference())
        )
        assert torch.equal(inference, plain)
    plain = featured(nn.Sequential(linear(2)), "0")
    assert torch.equal(featured(Inference(), "inner"), plain)


def test_a_vector_of_both_networks_outputs_is_the_form_with_one_output() -> None:
    z, g = torch.randn(2, 6)
    for loss in (distillation_cross_entropy, distillation_squared_error):
        assert torch.equal(loss(z, g, 3.0), loss(z[:, None], g[:, None], 3.0))
