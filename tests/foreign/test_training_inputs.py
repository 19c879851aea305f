"""Networks, loaders and logits that this project did not make: training gives the right values."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

import distillens as dl
from distillens.data import Batch
from distillens.errors import DataError, DistillensError, SupervisionError, TrainingError
from distillens.forward.evaluation import evaluation_mode
from distillens.models import load_state
from distillens.runs.layout import NetworkFiles
from distillens.supervision import (
    AveragedTeacher,
    CotrainedTeacher,
    Features,
    OnlineTeacher,
    Supervision,
    TeacherCheckpoint,
    attention_transfer,
)
from distillens.training import EpochRecord, make_optimizer, predict
from distillens.training.loop import _resume_random
from distillens.training.trajectory import global_random_state, read_state, write_state

X = torch.rand(64, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(64) % 5
STILL = dl.TrainingRecipe(epochs=1, learning_rate=1e-9)
SHORT = dl.TrainingRecipe(epochs=2, learning_rate=0.05)


def linear(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(8, 5)


def loader(**options: Any) -> DataLoader:
    return DataLoader(TensorDataset(X, Y), batch_size=16, **options)


def source(**options: Any) -> dl.LoaderBatches:
    return dl.LoaderBatches(loader(**options))


def batch() -> Batch:
    return Batch(X[:16].clone(), Y[:16], torch.arange(16))


def loss_of(model: nn.Module, supervision: Supervision, accumulate: int = 1) -> float:
    recipe = STILL.model_copy(update={"accumulate": accumulate})
    return dl.fit(model, supervision, source(), recipe).records[0].loss


def weights(model: nn.Module) -> Tensor:
    return torch.cat([each.detach().flatten().float() for each in model.state_dict().values()])


class Normalising(nn.Module):
    """Normalises its inputs, in place or not, or through an alias that has no version counter."""

    def __init__(self, inner: nn.Module, way: str) -> None:
        super().__init__()
        self.inner, self.way = inner, way

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "in place":
            x.sub_(0.5).div_(0.25)
        elif self.way == "alias":
            x.data.sub_(0.5).div_(0.25)
        else:
            x = (x - 0.5) / 0.25
        return self.inner(x)


def distilled(teacher: nn.Module) -> dl.Distillation:
    return dl.Distillation(dl.FixedTeacher(teacher), temperature=2)


def cotrained(teacher: nn.Module) -> dl.Distillation:
    optimizer = make_optimizer(teacher, STILL)
    return dl.Distillation(CotrainedTeacher(teacher, optimizer, dl.OneHot(), lambda step: 1e-9))


@pytest.mark.parametrize("way", ["in place", "alias"])
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("kind", [distilled, cotrained])
def test_networks_that_modify_their_inputs_change_nothing_for_others(
    way: str, accumulate: int, kind: Callable[[nn.Module], dl.Distillation]
) -> None:
    losses = []
    for each in ("copy", way):
        student, first, second = (Normalising(linear(seed), each) for seed in range(3))
        mixed = dl.Mixed(kind(first), kind(second), alpha=0.5)
        losses.append(loss_of(student, mixed, accumulate))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_networks_that_modify_their_inputs_leave_the_data_as_they_are() -> None:
    inputs = X.clone()
    views = [(inputs[start : start + 16], Y[start : start + 16]) for start in range(0, 64, 16)]
    student, teacher = Normalising(linear(), "in place"), Normalising(linear(1), "in place")
    dl.fit(student, distilled(teacher), dl.LoaderBatches(views), SHORT)
    assert torch.equal(inputs, X)


def convolutions() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(288, 5))


def test_a_feature_is_what_the_layer_returned_whatever_comes_behind_it() -> None:
    torch.manual_seed(0)
    student, teacher, images = convolutions(), convolutions(), torch.randn(16, 3, 8, 8)
    given = Batch(images, Y[:16], torch.arange(16))
    with Features(dl.OneHot(), student, teacher, {"0": "0"}) as features:
        logits = student(images)
        got = features.loss(logits, given, 0) - dl.OneHot().loss(logits, given, 0)
    got.backward()
    found = student[0].weight.grad
    student.zero_grad()
    want = attention_transfer(student[0](images), teacher[0](images).detach())
    want.backward()
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(found, student[0].weight.grad)
    assert teacher[0].weight.grad is None


class Several(nn.Module):
    """A convolution that returns its output several times over."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.conv, self.times = nn.Conv2d(3, 8, 3), times

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.conv(x),) * self.times


@pytest.mark.parametrize("times", [1, 2])
def test_a_layer_that_returns_more_than_one_tensor_is_no_feature(times: int) -> None:
    class First(nn.Module):
        def forward(self, outputs: tuple[Tensor, ...]) -> Tensor:
            return outputs[0]

    student = nn.Sequential(Several(times), First(), *list(convolutions())[1:])
    images = torch.randn(4, 3, 8, 8)
    with Features(dl.OneHot(), student, convolutions(), {"0": "0"}) as features:
        if times == 1:
            features.loss(student(images), Batch(images, Y[:4], torch.arange(4)), 0)
        else:
            with pytest.raises(
                SupervisionError, match="returns a tuple with 2 floating-point tensors"
            ):
                student(images)


def test_features_of_a_teacher_that_is_the_student_are_those_before_training() -> None:
    torch.manual_seed(0)
    student = convolutions()
    other, images = copy.deepcopy(student), torch.randn(64, 3, 8, 8)
    data = dl.LoaderBatches(DataLoader(TensorDataset(images, Y), batch_size=16))
    losses = []
    for teacher in (student, copy.deepcopy(student)):
        model = student if teacher is student else other
        with Features(dl.OneHot(), model, teacher, {"0": "0"}, weight=10) as features:
            losses.append(dl.fit(model, features, data, SHORT).records[-1].loss)
    assert losses[0] == losses[1]
    torch.testing.assert_close(weights(student), weights(other), rtol=0, atol=0)


class Watched(nn.Module):
    """Notes the mode of its dropout at each forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.5))
        self.head, self.modes = nn.Linear(16, 5), set[bool]()

    def forward(self, x: Tensor) -> Tensor:
        self.modes.add(self.body[2].training)
        return self.head(self.body(x))


def test_a_teacher_in_training_mode_is_run_in_evaluation_mode_and_left_as_it_was() -> None:
    teacher = Watched().train()
    teacher.body[1].eval()
    before, modes = weights(teacher), [each.training for each in teacher.modules()]
    loss_of(linear(), distilled(teacher))
    assert teacher.modes == {False}
    assert [each.training for each in teacher.modules()] == modes
    assert all(each.requires_grad and each.grad is None for each in teacher.parameters())
    assert torch.equal(weights(teacher), before)


def test_prediction_restores_the_mode_of_every_submodule() -> None:
    model = Watched().train()
    model.body[1].eval()
    modes = [each.training for each in model.modules()]
    predict(model, dl.examples_from_arrays(X, Y), None)
    assert model.modes == {False}
    assert [each.training for each in model.modules()] == modes


def test_leaving_evaluation_mode_calls_train_of_layers_that_act_on_it() -> None:
    class Merging(nn.Linear):
        merged = False

        def train(self, mode: bool = True) -> Merging:
            self.merged = not mode
            return super().train(mode)

    layer = Merging(2, 2)
    with evaluation_mode(nn.Sequential(layer)):
        assert layer.merged
    assert not layer.merged


def shared_backbone() -> tuple[nn.Module, nn.Module]:
    backbone = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU())
    return nn.Sequential(backbone, nn.Linear(16, 5)), nn.Sequential(backbone, nn.Linear(16, 5))


def shared_frozen_backbone() -> tuple[nn.Module, nn.Module]:
    student, teacher = shared_backbone()
    student[0].requires_grad_(False)  # type: ignore[index]
    return student, teacher


def teacher_inside_the_student() -> tuple[nn.Module, nn.Module]:
    class Wrapped(nn.Module):
        def __init__(self, teacher: nn.Module) -> None:
            super().__init__()
            self.teacher, self.out = teacher, nn.Linear(5, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.teacher(x))

    teacher = nn.Sequential(nn.Linear(8, 5), nn.BatchNorm1d(5))
    return Wrapped(teacher), teacher


def student_inside_the_teacher() -> tuple[nn.Module, nn.Module]:
    student = linear()
    return student, nn.Sequential(student, nn.Linear(5, 5))


def the_same_network() -> tuple[nn.Module, nn.Module]:
    student = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 5))
    return student, student


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize(
    "networks",
    [
        shared_backbone,
        shared_frozen_backbone,
        teacher_inside_the_student,
        student_inside_the_teacher,
        the_same_network,
    ],
)
def test_a_teacher_that_shares_layers_with_the_student_stays_what_it_was(
    networks: Callable[[], tuple[nn.Module, nn.Module]], resumed: bool, tmp_path: Path
) -> None:
    trained = []
    for apart in (False, True):
        torch.manual_seed(0)
        student, teacher = networks()
        supervision = dl.Mixed(
            dl.OneHot(), distilled(copy.deepcopy(teacher) if apart else teacher), alpha=0.5
        )
        files = NetworkFiles(tmp_path / str(apart))
        if resumed:
            with pytest.raises(Killed):
                dl.fit(student, supervision, source(), SHORT, store=files, hooks=[stop(1)])
            torch.manual_seed(0)
            student, teacher = networks()
            supervision = dl.Mixed(
                dl.OneHot(), distilled(copy.deepcopy(teacher) if apart else teacher), alpha=0.5
            )
        before = weights(student)
        dl.fit(student, supervision, source(), SHORT, store=files)
        assert not torch.equal(before, weights(student))
        trained.append(weights(student))
    assert torch.equal(*trained)


def test_a_shared_backbone_is_trained_unless_the_user_froze_it() -> None:
    student, teacher = shared_backbone()
    before = weights(student[0])  # type: ignore[index]
    dl.fit(student, distilled(teacher), source(), SHORT)
    assert not torch.equal(before, weights(student[0]))  # type: ignore[index]


def test_averaged_and_online_teachers_are_kept_apart_as_well() -> None:
    student, shared = shared_backbone()
    online = OnlineTeacher([TeacherCheckpoint(1, lambda: dl.FixedTeacher(shared))], 8)
    with pytest.raises(SupervisionError, match="let load\\(\\) return a module of its own"):
        dl.fit(student, dl.Distillation(online), source(), SHORT)
    student, shared = shared_backbone()
    part = dl.FixedTeacher(shared)
    dl.fit(student, dl.Distillation(AveragedTeacher([part], [1])), source(), SHORT)
    assert part.module is not shared


def test_a_student_that_shares_layers_with_a_cotrained_teacher_gets_its_own_gradient_only() -> None:
    backbone = nn.Linear(8, 8)
    student, teacher = nn.Sequential(backbone, linear()), nn.Sequential(backbone, linear(1))
    supervision = cotrained(teacher)
    supervision.advance(batch(), 0)
    assert backbone.weight.grad is None
    assert student[1].weight.grad is None


def test_frozen_normalisation_layers_in_evaluation_mode_keep_their_statistics() -> None:
    student = Watched().train()
    student.body.requires_grad_(False).eval()
    before = weights(student.body)
    dl.fit(student, dl.OneHot(), source(), SHORT)
    assert torch.equal(weights(student.body), before)
    student.body.train()
    dl.fit(student, dl.OneHot(), source(), SHORT)
    assert not torch.equal(weights(student.body), before)


class Killed(Exception):  # noqa: N818
    """Stands in for a kill between two epochs."""


def stop(epoch: int) -> Callable[[EpochRecord, nn.Module], None]:
    def hook(record: EpochRecord, model: nn.Module) -> None:
        # An evaluation that draws, as iterating over any DataLoader does.
        for draw in (torch.rand, np.random.rand):
            draw(3)
        if record.epoch == epoch:
            raise Killed

    return hook


class Noisy(Dataset):
    """Adds noise to its examples, from its own generator or a global one."""

    def __init__(self, kind: str) -> None:
        self.kind, self.rng = kind, np.random.default_rng(3)
        self.parts = {"old": np.random.RandomState(4), "python": [random.Random(5)]}

    def __len__(self) -> int:
        return 64

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        python: Any = self.parts["python"]
        old: Any = self.parts["old"]
        draws: dict[str, Callable[[], Any]] = {
            "numpy": lambda: np.random.randn(8),  # noqa: NPY002
            "python": random.random,
            "own": lambda: self.rng.normal(size=8) + old.randn(8) + python[0].random(),
        }
        noise = torch.as_tensor(draws[self.kind](), dtype=torch.float32)
        return X[place] + noise, int(Y[place])


class Shuffling:
    """A loader of one's own."""

    def __init__(self) -> None:
        self.rng = random.Random(0)

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.tensor(self.rng.sample(range(64), 64))
        for place in order.chunk(4):
            yield X[place], Y[place]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


LOADERS: dict[str, Callable[[], Any]] = {
    "generator": lambda: loader(shuffle=True, generator=seeded()),
    "sampler": lambda: loader(sampler=RandomSampler(range(64), generator=seeded())),
    "weighted": lambda: loader(
        sampler=WeightedRandomSampler(
            [float(place + 1) for place in range(64)], 64, generator=seeded()
        )
    ),
    "batch sampler": lambda: DataLoader(
        TensorDataset(X, Y),
        batch_sampler=BatchSampler(RandomSampler(range(64), generator=seeded()), 16, False),
    ),
    "global": lambda: loader(shuffle=True),
    "numpy": lambda: DataLoader(Noisy("numpy"), 16, shuffle=True),
    "python": lambda: DataLoader(Noisy("python"), 16, shuffle=True),
    "own": lambda: DataLoader(Subset(Noisy("own"), range(64)), 16, shuffle=True),
    "distributed": lambda: loader(sampler=DistributedSampler(range(64), 1, 0, seed=3)),  # type: ignore[arg-type]
    "shuffling": Shuffling,
}


@pytest.mark.parametrize("name", LOADERS)
def test_an_interrupted_training_ends_with_the_same_bits_with_any_loader(
    name: str, tmp_path: Path
) -> None:
    recipe = SHORT.model_copy(update={"epochs": 3})

    def train(folder: str, seed: int, hooks: Any = ()) -> Tensor:
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        model = nn.Sequential(linear(), nn.Dropout(0.2))
        data, files = dl.LoaderBatches(LOADERS[name]()), NetworkFiles(tmp_path / folder)
        dl.fit(model, dl.OneHot(), data, recipe, store=files, hooks=hooks)
        return weights(model)

    whole = train("whole", 0)
    with pytest.raises(Killed):
        train("killed", 0, [stop(2)])
    assert torch.equal(train("killed", 1), whole)


def test_a_state_without_the_loaders_generators_is_not_resumed(tmp_path: Path) -> None:
    files = NetworkFiles(tmp_path)
    with pytest.raises(Killed):
        dl.fit(linear(), dl.OneHot(), source(), SHORT, store=files, hooks=[stop(1)])
    state = read_state(files.state)
    # As an earlier version wrote it.
    del state["batches"], state["others"], state["random"]["python"], state["random"]["numpy"]
    write_state(files.state, state)
    own = source(shuffle=True, generator=seeded())
    with pytest.raises(DistillensError, match="lacks the random state of the loader"):
        dl.fit(linear(), dl.OneHot(), own, SHORT, store=files)
    assert len(dl.fit(linear(), dl.OneHot(), source(), SHORT, store=files).records) == 2


def test_a_loader_with_other_generators_is_refused(tmp_path: Path) -> None:
    files = NetworkFiles(tmp_path)
    own = source(shuffle=True, generator=seeded())
    with pytest.raises(Killed):
        dl.fit(linear(), dl.OneHot(), own, SHORT, store=files, hooks=[stop(1)])
    with pytest.raises(DistillensError, match="build the loader as it was built"):
        dl.fit(linear(), dl.OneHot(), source(), SHORT, store=files)


def test_a_loaders_own_state_is_saved_and_taken_up(tmp_path: Path) -> None:
    class Stateful(Shuffling):
        """As StatefulDataLoader of torchdata: its random state cannot be seen from outside."""

        def __init__(self) -> None:
            self.epochs = 0

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            self.epochs += 1
            return (
                (X[place], Y[place])
                for place in torch.randperm(64, generator=seeded(self.epochs)).chunk(4)
            )

        def state_dict(self) -> dict[str, int]:
            return {"epochs": self.epochs}

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.epochs = state["epochs"]

    trained = []
    for folder, hooks in (("whole", []), ("killed", [stop(1)]), ("killed", [])):
        model = linear()
        files = NetworkFiles(tmp_path / folder)
        data = dl.LoaderBatches(Stateful())
        try:
            dl.fit(model, dl.OneHot(), data, SHORT, store=files, hooks=hooks)
        except Killed:
            continue
        trained.append(weights(model))
    assert torch.equal(*trained)


def test_each_process_resumes_with_its_own_random_state(tmp_path: Path) -> None:
    def drawing(seed: int) -> dl.LoaderBatches:
        return source(shuffle=True, generator=seeded(seed))

    states = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        states.append({"random": global_random_state(), "batches": drawing(seed).state_dict()})
    state, files = states[0] | {"others": states[1:]}, NetworkFiles(tmp_path)
    for seed in (0, 1):
        process: Any = SimpleNamespace(process_index=seed, num_processes=2)
        resumed = drawing(7)
        _resume_random(state, files, resumed, process)
        torch.testing.assert_close(torch.rand(3), torch.rand(3, generator=seeded(seed)))
        first, second = next(resumed.epoch(0)), next(drawing(seed).epoch(0))
        assert torch.equal(first.inputs, second.inputs)


class Wrapping:
    """A sampler around another, as those that make any sampler distributed."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __iter__(self) -> Iterator[int]:
        return iter(self.inner)

    def __len__(self) -> int:
        return len(self.inner)


def test_samplers_and_datasets_are_told_the_epoch() -> None:
    def sampler() -> DistributedSampler:
        return DistributedSampler(TensorDataset(X, Y), num_replicas=2, rank=0, shuffle=True)

    class Told(IterableDataset):
        epoch = -1

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

        def __iter__(self) -> Iterator[tuple[Tensor, int]]:
            return ((X[(place + self.epoch) % 64], 0) for place in range(32))

    for data in (
        source(sampler=sampler()),
        source(sampler=Wrapping(sampler())),
        dl.LoaderBatches(
            DataLoader(TensorDataset(X, Y), batch_sampler=BatchSampler(sampler(), 16, False))
        ),
        dl.LoaderBatches(DataLoader(Told(), 16), steps_per_epoch=2),
    ):
        first, again, second = (
            torch.cat([each.inputs for each in data.epoch(epoch)]) for epoch in (0, 0, 1)
        )
        assert torch.equal(first, again)
        assert not torch.equal(first, second)


def test_gradients_that_were_there_before_do_not_count() -> None:
    def train(spoil: Callable[[nn.Module], Any]) -> tuple[Tensor, nn.Module]:
        model = linear()
        spoil(model)
        dl.fit(model, dl.OneHot(), source(), SHORT, hooks=[lambda record, trained: spoil(trained)])
        return weights(model), model

    clean, model = train(lambda model: None)
    assert all(each.grad is None for each in model.parameters())
    spoiled, _ = train(lambda model: (50 * model(X)).square().sum().backward())
    assert torch.equal(clean, spoiled)


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = linear()
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(4))
        self.fixed = nn.Parameter(torch.tensor([0.0, float("-inf")]), requires_grad=False)
        self.register_buffer("norm", torch.zeros(()))
        self.spoil = False

    def forward(self, x: Tensor) -> Tensor:
        self.norm += torch.tensor(float("nan") if self.spoil else 1.0)
        return self.inner(x)


def test_masks_of_infinities_are_no_diverged_weights(tmp_path: Path) -> None:
    files = NetworkFiles(tmp_path)
    with pytest.raises(Killed):
        dl.fit(Masked(), dl.OneHot(), source(), SHORT, store=files, hooks=[stop(1)])
    model = Masked()
    dl.fit(model, dl.OneHot(), source(), SHORT, store=files)
    model.spoil = True
    with pytest.raises(TrainingError, match="first 'norm'"):
        dl.fit(model, dl.OneHot(), source(), SHORT)


def test_weights_that_share_memory_are_saved_each_by_its_name(tmp_path: Path) -> None:
    class Sharing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = linear()
            self.tied = self.inner.weight
            self.register_buffer("rows", self.inner.weight.detach()[1:])

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    files, model = NetworkFiles(tmp_path), Sharing()
    dl.fit(model, dl.OneHot(), source(), SHORT, store=files)
    saved = load_state(files.weights(2))
    for name, tensor in model.state_dict().items():
        assert torch.equal(saved[name], tensor)


class Stream(IterableDataset):
    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return ((X[place % 64], place % 5) for place in range(self.count))


class Sized(Stream):
    def __len__(self) -> int:
        return 48


def test_a_stream_trains_as_the_same_examples_in_a_list() -> None:
    streamed, listed = linear(), linear()
    for model, data in (
        (streamed, dl.LoaderBatches(DataLoader(Stream(10**9), 16), steps_per_epoch=4)),
        (listed, dl.LoaderBatches([(x, torch.arange(16 * n, 16 * n + 16) % 5)
                                   for n, x in enumerate(X.split(16))])),
    ):  # fmt: skip
        dl.fit(model, dl.OneHot(), data, SHORT)
    assert torch.equal(weights(streamed), weights(listed))


@pytest.mark.filterwarnings("ignore:Length of IterableDataset")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dl.LoaderBatches(DataLoader(Stream(64), 16)), "steps_per_epoch=..."),
        (lambda: dl.LoaderBatches(iter([(X, Y)])), "can be read only once"),
        (lambda: dl.LoaderBatches([]), "has no batches"),
        (lambda: dl.LoaderBatches([(X, Y)], steps_per_epoch=0), "at least 1, got 0"),
        (lambda: dl.LoaderBatches([(X.tolist(), Y)]), "arrays of numbers, got list"),
        (
            lambda: dl.LoaderBatches(DataLoader(Stream(40), 16), steps_per_epoch=5),
            "ended after 3 batches, but their source has length 5",
        ),
        (lambda: dl.LoaderBatches(DataLoader(Sized(64), 16)), "more than 3 batches"),
        (lambda: dl.LoaderBatches(DataLoader(Sized(32), 16)), "ended after 2 batches"),
    ],
)
def test_loaders_without_a_right_length_are_refused(
    make: Callable[[], dl.LoaderBatches], message: str
) -> None:
    with pytest.raises(DistillensError, match=message):
        dl.fit(linear(), dl.OneHot(), make(), SHORT)


KINDS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@pytest.mark.parametrize("teacher", KINDS)
@pytest.mark.parametrize("student", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("inputs", [torch.float32, torch.float64])
def test_networks_take_inputs_of_another_floating_type(
    teacher: torch.dtype, student: torch.dtype, inputs: torch.dtype
) -> None:
    data = dl.LoaderBatches(DataLoader(TensorDataset(X.to(inputs), Y), 16))
    supervision = distilled(linear(1).to(teacher))
    loss = dl.fit(linear().to(student), supervision, data, STILL).records[0].loss
    assert loss == pytest.approx(loss_of(linear(), distilled(linear(1))), rel=0.02)
    assert supervision.teacher.logits(batch()).dtype == (
        torch.float64 if teacher == torch.float64 else torch.float32
    )


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(8, 5, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return (x.to(self.weight.dtype) @ self.weight).real


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_complex_parameters_train_as_their_real_and_imaginary_parts(optimizer: Any) -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            parts = torch.view_as_real(Complex().weight.detach())
            self.weight = nn.Parameter(parts.clone())

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight[..., 0]

    recipe = SHORT.model_copy(update={"optimizer": optimizer, "weight_decay": 0.1})
    models = Complex(), Parts()
    for model in models:
        dl.fit(model, dl.OneHot(), source(), recipe)
    torch.testing.assert_close(
        torch.view_as_real(models[0].weight.detach()), models[1].weight.detach()
    )


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_sparse_gradients_train_as_dense_ones(optimizer: Any) -> None:
    tokens = torch.randint(0, 10, (64, 3), generator=seeded())
    recipe = SHORT.model_copy(update={"optimizer": optimizer, "weight_decay": 0.1, "accumulate": 2})
    trained = []
    for sparse in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(10, 8, sparse=sparse), nn.Flatten(), nn.Linear(24, 5))
        data = dl.LoaderBatches(DataLoader(TensorDataset(tokens, Y), 16))
        dl.fit(model, dl.OneHot(), data, recipe)
        trained.append(weights(model))
    torch.testing.assert_close(*trained)


class Detached(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).detach()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (linear().requires_grad_(False), "no trainable parameters"),
        (nn.Flatten(), "no trainable parameters"),
        (nn.LazyLinear(5), "'weight' has no shape yet"),
        (Detached(8, 5), "does not depend on any trainable parameter"),
    ],
)
def test_models_that_cannot_learn_are_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        dl.fit(model, dl.OneHot(), source(), SHORT)


Z = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
LAYOUTS: dict[str, Callable[[np.ndarray], Any]] = {
    "big-endian": lambda z: z.astype(">f4"),
    "big-endian float16": lambda z: z.astype(">f2"),
    "float64": lambda z: z.astype(np.float64),
    "long double": lambda z: z.astype(np.longdouble),
    "rows backwards": lambda z: z[::-1].copy()[::-1],
    "columns backwards": lambda z: z[:, ::-1].copy()[:, ::-1],
    "Fortran order": np.asfortranarray,
    "tensor with a gradient": lambda z: torch.tensor(z, requires_grad=True),
    "bfloat16 tensor": lambda z: torch.tensor(z).bfloat16(),
    "transposed tensor": lambda z: torch.tensor(z.T.copy()).T,
    "list": lambda z: z.tolist(),
}


def read_only(z: np.ndarray) -> np.ndarray:
    z = z.copy()
    z.flags.writeable = False
    return z


def recorded(logits: Any, indices: Any = None, wanted: Tensor | None = None) -> Tensor:
    wanted = torch.arange(8) if wanted is None else wanted
    count = len(wanted)
    given = Batch(torch.zeros(count, 1), torch.zeros(count, dtype=torch.int64), wanted)
    return dl.RecordedTeacher(logits, indices).logits(given)


@pytest.mark.parametrize("layout", [*LAYOUTS, "integers", "read-only"])
def test_recorded_logits_may_be_stored_in_any_way(layout: str) -> None:
    ways = LAYOUTS | {"integers": lambda z: (z * 10).astype(">i8"), "read-only": read_only}
    found = recorded(ways[layout](Z))
    want = (Z * 10).astype(np.int64) if layout == "integers" else Z
    tolerance = 0.02 if "16" in layout else 1e-6
    np.testing.assert_allclose(found.numpy(), want, atol=tolerance)
    assert found.dtype in (torch.float32, torch.float64)
    assert not found.requires_grad


@pytest.mark.parametrize(
    "logits",
    [
        Z > 0,
        Z + 1j,
        Z.astype(object),
        Z.astype(str),
        np.zeros((8, 2), dtype=[("a", "f4"), ("b", "f4")]),
        torch.tensor(Z) > 0,
    ],
)
def test_logits_that_are_no_real_numbers_are_refused(logits: Any) -> None:
    with pytest.raises(SupervisionError, match="must be real numbers"):
        recorded(logits)


@pytest.mark.parametrize(
    "indices",
    [
        torch.tensor([10**12, 10**12 + 7, 5, 0, -(2**63), -5, 2**63 - 1, 3]),
        np.array([2**64 - 2, 2**63, 7, 1, 2, 3, 4, 5], dtype=">u8"),
        np.arange(8, dtype=">i2")[::-1],
        [7, 6, 5, 4, 3, 2, 1, 0],
    ],
)
def test_recorded_logits_are_found_by_any_integers(indices: Any) -> None:
    wanted = indices
    if not isinstance(indices, Tensor):
        native = np.asarray(indices)
        wanted = torch.from_numpy(native.astype(native.dtype.newbyteorder("=")))
    np.testing.assert_array_equal(recorded(Z, indices, wanted), Z)


@pytest.mark.parametrize(
    ("indices", "wanted", "message"),
    [
        ([0, 1, 2, 3, 0, 1, 2, 3], [0], "index 0 belongs to 2 rows"),
        ([0, 1, 2, 3, 4, 5, 6, -1], [0], "marks examples without a stable index"),
        ([0, 1, 2, 3, 4, 5, 6, 10**15], [7], "example with index 7; 8 rows"),
        ([0, 1, 2, 3, 4, 5, 6, 10**15], [-1], "let the data give one"),
        ([0, 1, 2], [0], "8 rows of teacher logits but 3 indices"),
        ([0.0, 1, 2, 3, 4, 5, 6, 7], [0], "one integer a row"),
        ([[0], [1], [2], [3], [4], [5], [6], [7]], [0], "one integer a row"),
    ],
)
def test_indices_that_do_not_name_one_row_each_are_refused(
    indices: list, wanted: list[int], message: str
) -> None:
    with pytest.raises(SupervisionError, match=message):
        recorded(Z, torch.tensor(indices), torch.tensor(wanted))


@pytest.mark.parametrize("layout", [*LAYOUTS, "booleans"])
def test_examples_may_be_stored_in_any_way(layout: str) -> None:
    ways = LAYOUTS | {"booleans": lambda z: z > 0}
    examples = dl.examples_from_arrays(ways[layout](Z), np.arange(8)[::-1])
    want = (Z > 0).astype(np.float32) if layout == "booleans" else Z
    np.testing.assert_allclose(examples.inputs.numpy(), want, atol=0.02 if "16" in layout else 1e-6)
    assert examples.inputs.dtype == torch.float32
    assert examples.inputs.is_contiguous()
    assert examples.labels.tolist() == list(range(8))[::-1]
    assert examples.fingerprint


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((Z * 10).astype(np.int64), "convert pixels of 0 to 255 to uint8"),
        (np.abs(Z * 10).astype(np.uint16), "convert pixels of 0 to 255 to uint8"),
        (np.ma.masked_greater(Z, 0), "masked values"),
        (np.zeros(8, dtype=[("a", "f4")]), "are no array of numbers"),
    ],
)
def test_arrays_whose_scale_is_unknown_are_refused(inputs: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        dl.examples_from_arrays(inputs, np.arange(8))


def learning(module: nn.Module, kind: Any = torch.optim.SGD, **options: Any) -> CotrainedTeacher:
    optimizer = kind(module.parameters(), lr=0.1, **options)
    return CotrainedTeacher(module, optimizer, dl.OneHot(), 0.1)


def test_a_cotrained_teacher_within_an_average_is_resumed(tmp_path: Path) -> None:
    def train(files: NetworkFiles | None = None, hooks: Any = ()) -> Tensor:
        model, beside = linear(), learning(linear(1), momentum=0.9)
        average = AveragedTeacher([beside, linear(2)], [1.0, 1.0])
        supervision = dl.Distillation(average, 2.0)
        dl.fit(model, supervision, source(), SHORT, store=files, hooks=hooks)
        return weights(model)

    files = NetworkFiles(tmp_path)
    with pytest.raises(Killed):
        train(files, [stop(1)])
    assert torch.equal(train(files), train())


def test_a_cotrained_teacher_with_sparse_gradients_trains_as_with_dense_ones() -> None:
    tokens = torch.randint(0, 10, (64, 3), generator=torch.Generator().manual_seed(0))
    found = []
    for sparse in (False, True):
        torch.manual_seed(0)
        teacher, student = (
            nn.Sequential(nn.Embedding(10, 8, sparse=each), nn.Flatten(), nn.Linear(24, 5))
            for each in (sparse, False)
        )
        supervision = dl.Distillation(learning(teacher, torch.optim.Adam))
        dl.fit(student, supervision, [(tokens, Y)], SHORT)
        found.append(weights(student))
    assert torch.equal(*found)


def test_labels_may_be_lists() -> None:
    models = linear(), linear()
    for model, labels in zip(models, (Y, Y.tolist()), strict=True):
        dl.fit(model, dl.OneHot(), [(X, labels)], SHORT)
    assert torch.equal(*(weights(model) for model in models))


def exported() -> nn.Module:
    return torch.export.export(linear(), (X,)).module()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: learning(linear().requires_grad_(False)), "has no trainable parameters"),
        (lambda: dl.RecordedTeacher(np.ma.masked_less(X.numpy(), 0.5)), "has masked values"),
        (lambda: fit_to(exported()), "cannot be put into evaluation mode"),
        (
            lambda: dl.fit(linear(), dl.OneHot(), cast(Any, TensorDataset(X, Y)), SHORT),
            r"through torch\.utils\.data\.DataLoader",
        ),
        (
            lambda: dl.fit(linear(), dl.OneHot(), [(X[0], 3), (X[1], 2)], SHORT),
            r"through torch\.utils\.data\.DataLoader",
        ),
    ],
)
def test_teachers_and_data_without_a_meaning_are_one_line(
    build: Callable[[], Any], says: str
) -> None:
    with pytest.raises(DistillensError, match=says) as caught:
        build()
    assert "\n" not in str(caught.value)


def fit_to(teacher: nn.Module) -> None:
    dl.fit(linear(), dl.Distillation(dl.FixedTeacher(teacher)), source(), SHORT)
