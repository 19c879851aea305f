"""Training as it is on an accelerator, on a CPU: data held on the device, captured steps, no waiting.

`tape.Tape` stands in for a CUDA graph. The tests marked ``cuda`` need a GPU.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tape import Tape
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from distillens.data import (
    Augmentation,
    Batches,
    Examples,
    Normalisation,
    examples_from_arrays,
)
from distillens.data.augment import random_bits
from distillens.errors import (
    DataError,
    DeviceError,
    DivergenceError,
    SupervisionError,
    TrainingError,
)
from distillens.models import ModelRecipe, build_model
from distillens.runs.layout import NetworkFiles
from distillens.study import run
from distillens.study.students import one_by_one, seed_by_seed
from distillens.supervision import (
    AveragedTeacher,
    CachedTeacher,
    CotrainedTeacher,
    Distillation,
    FixedTeacher,
    LogitCache,
    Mixed,
    OneHot,
    OnlineTeacher,
    RecordedTeacher,
    Supervision,
    Switched,
    TeacherCheckpoint,
)
from distillens.supervision.block_memory import BLOCKS
from distillens.training import (
    EpochRecord,
    History,
    Training,
    TrainingRecipe,
    fit,
    fit_together,
    make_optimizer,
)

SIZE, BATCH, EPOCHS = 44, 8, 3
STEPS = EPOCHS * 6
RECIPE = TrainingRecipe(epochs=EPOCHS, batch_size=BATCH, learning_rate=0.05, clip_norm=5.0)


@pytest.fixture(autouse=True)
def _no_blocks() -> Iterator[None]:
    yield
    BLOCKS.clear()


@pytest.fixture
def tapes(monkeypatch: pytest.MonkeyPatch) -> list[Tape]:
    """Capture steps on the CPU; the tapes that were made."""
    made: list[Tape] = []

    def new() -> Tape:
        made.append(Tape())
        return made[-1]

    monkeypatch.setattr("distillens.training.loop.graph_for", lambda device: new)
    return made


def pictures(dtype: str = "uint8", count: int = SIZE, seed: int = 0) -> Examples:
    generator = np.random.default_rng(seed)
    inputs = generator.integers(0, 256, (count, 3, 8, 8), dtype=np.uint8)
    return examples_from_arrays(inputs.astype(dtype), np.arange(count) % 4)


def batches(resident: bool, dtype: str = "uint8", **arguments: Any) -> Batches:
    examples = pictures(dtype)
    return Batches(
        examples,
        BATCH,
        **{
            "normalisation": Normalisation.of(examples),
            "augmentation": Augmentation(crop=2, flip=True),
            "channels_last": True,
            "resident": resident,
            **arguments,
        },
    )


def network(name: str = "conv", seed: int = 0, middle: nn.Module | None = None) -> nn.Module:
    if name != "conv":
        return build_model(ModelRecipe(name=name), (3, 8, 8), 4, seed=seed)
    torch.manual_seed(seed)
    convolution = [nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*convolution, middle or nn.Identity(), nn.Linear(54, 4))


def weights(model: nn.Module) -> Tensor:
    return torch.cat([value.detach().flatten().double() for value in model.state_dict().values()])


def cached(folder: Path, source: Batches, seed: int = 7) -> CachedTeacher:
    cache = LogitCache(folder, source, "float32")
    return CachedTeacher(cache, f"digest {seed}", lambda: network("mlp", seed))


def online(load: Callable[[int], Any]) -> OnlineTeacher:
    path = [TeacherCheckpoint(6 * k, lambda k=k: load(k)) for k in range(1, EPOCHS + 1)]
    return OnlineTeacher(path, STEPS)


def recorded(seed: int = 3) -> RecordedTeacher:
    generator = torch.Generator().manual_seed(seed)
    return RecordedTeacher(torch.randn(SIZE, 4, generator=generator))


SUPERVISIONS: dict[str, Callable[[Path, Batches], Supervision]] = {
    "labels": lambda folder, source: OneHot(),
    "smoothed": lambda folder, source: OneHot("squared-error", 0.1),
    "offline": lambda folder, source: Distillation(cached(folder, source), 4),
    "online": lambda folder, source: Distillation(
        online(lambda k: cached(folder, source, seed=k)), 4
    ),
    "live": lambda folder, source: Distillation(online(lambda k: FixedTeacher(network("mlp", k)))),
    "schedule": lambda folder, source: Distillation(recorded(), lambda step: 4.0 / (step + 1)),
    "averaged": lambda folder, source: Distillation(
        AveragedTeacher([cached(folder, source, 1), cached(folder, source, 2)], [1, 3])
    ),
    "mixed": lambda folder, source: Mixed(OneHot(), Distillation(recorded(), 2), 0.3),
    "switched": lambda folder, source: Switched(
        OneHot(), Distillation(cached(folder, source), 2), at=7
    ),
    "window": lambda folder, source: Switched(
        Distillation(recorded(), 2), OneHot(), at=4, window=4
    ),
}


def trained(
    how: str, folder: Path, *, resident: bool, recipe: TrainingRecipe = RECIPE, **arguments: Any
) -> tuple[Tensor, History]:
    source, model = batches(resident), network()
    history = fit(model, SUPERVISIONS[how](folder, source), source, recipe, **arguments)
    return weights(model), history


def test_random_integers_are_those_of_splitmix64_in_unsigned_arithmetic() -> None:
    def mix(state: int) -> int:
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ state >> 27) * 0x94D049BB133111EB % 2**64
        return state ^ state >> 31

    def expected(seed: int, epoch: int, index: int, stream: int, high: int) -> int:
        state = index % 2**64
        for word in (stream, epoch, seed):
            state = mix((state + 0x9E3779B97F4A7C15 * (word + 1)) % 2**64)
        return (state >> 11) % high

    index = np.array([0, 1, 49_999, 2**40, 2**63 - 1, -1, -(2**63)])
    for seed, epoch, stream, high in ((0, 0, 0, 9), (5, 255, 1, 9), (2**32 - 1, 3, 2, 2)):
        drawn = (
            random_bits(seed, epoch, torch.as_tensor(index), stream + 1)[stream] % high
        ).tolist()
        assert drawn == [expected(seed, epoch, int(one), stream, high) for one in index]
    # What runs of earlier versions were trained with.
    assert (random_bits(3, 2, torch.arange(10), 2)[1] % 9).tolist() == OLD_DRAWS


OLD_DRAWS = [6, 2, 4, 0, 4, 4, 6, 4, 7, 7]


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("processes", [1, 2])
def test_batches_held_on_the_device_are_those_of_the_host(dtype: str, processes: int) -> None:
    for rank in range(processes):
        share: dict[str, Any] = {"rank": rank, "processes": processes}
        plain, held = batches(False, dtype, **share), batches(True, dtype, **share)
        for epoch in (0, 2, 2, 1):
            for mine, theirs in zip(held.epoch(epoch), plain.epoch(epoch), strict=True):
                assert torch.equal(mine.inputs, theirs.inputs)
                assert torch.equal(mine.labels, theirs.labels)
                assert torch.equal(mine.indices, theirs.indices)
                assert mine.weight == theirs.weight
                assert mine.rows is not None
                assert torch.equal(mine.rows.examples.indices[mine.rows.positions], mine.indices)
        some = np.array([5, 0, 43])
        assert torch.equal(held.take(some, 1).inputs, plain.take(some, 1).inputs)


@pytest.mark.parametrize("how", SUPERVISIONS)
def test_captured_and_resident_steps_train_as_plain_ones(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tapes: list[Tape]
) -> None:
    captured, history = trained(how, tmp_path / "captured", resident=True)
    assert history.notes == ()
    assert sum(tape.replays for tape in tapes) > (0 if how == "live" else STEPS // 4)
    assert not list(tmp_path.rglob("*.npy"))
    monkeypatch.setattr("distillens.training.loop.graph_for", lambda device: None)
    resident, _ = trained(how, tmp_path / "resident", resident=True)
    plain, _ = trained(how, tmp_path / "plain", resident=False)
    assert torch.equal(resident, captured)
    # A temperature in a tensor is squared in float32.
    tolerance = 1e-6 if how == "schedule" else 0
    torch.testing.assert_close(plain, resident, rtol=tolerance, atol=tolerance)


class Counting(nn.Module):
    """Changes what it does with the number of the step."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        return x * (1 + self.steps)


class Reading(nn.Module):
    """Asks the device for a value."""

    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.detach().mean()) > 0 else 2 * x


class Drawing(nn.Module):
    """Draws on the host."""

    def forward(self, x: Tensor) -> Tensor:
        return x * random.choice([1.0, 1.0])


def hooked() -> nn.Module:
    layer = nn.Identity()

    def double(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return 2 * output

    layer.register_forward_hook(double)
    return layer


@pytest.mark.parametrize(
    ("middle", "reason"),
    [
        (Counting, "two steps called different operations"),
        (Reading, "_local_scalar_dense.default makes the host wait"),
        (Drawing, "draws random numbers on the host"),
        (hooked, "has hooks"),
    ],
)
def test_a_network_that_a_graph_would_not_repeat_runs_eagerly_and_says_so(
    middle: Callable[[], nn.Module], reason: str, tapes: list[Tape]
) -> None:
    plain, model = network(middle=middle()), network(middle=middle())
    history = fit(model, OneHot(), batches(True), RECIPE)
    fit(plain, OneHot(), batches(False), RECIPE)
    assert len(history.notes) == 1
    assert reason in history.notes[0]
    assert torch.equal(weights(plain), weights(model))
    assert not tapes


def own_loss(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, mask: Tensor | None
) -> Tensor:
    return (student - teacher).square().mean()


@pytest.mark.parametrize(
    ("supervision", "recipe", "reason"),
    [
        (lambda: OneHot(), {"accumulate": 2}, "2 micro-batches"),
        (lambda: Distillation(recorded(), loss=own_loss), {}, "no attribute capturable"),
        (
            lambda: Distillation(
                CotrainedTeacher(
                    module := network("mlp"), make_optimizer(module, RECIPE), OneHot(), 0.05
                )
            ),
            {},
            "CotrainedTeacher has no method phase",
        ),
    ],
)
def test_a_supervision_that_a_graph_would_not_repeat_runs_eagerly_and_says_so(
    supervision: Callable[[], Supervision],
    recipe: dict[str, Any],
    reason: str,
    tapes: list[Tape],
) -> None:
    plain, model = network(), network()
    asked = RECIPE.model_copy(update=recipe)
    history = fit(model, supervision(), batches(True), asked)
    fit(plain, supervision(), batches(False), asked)
    assert reason in history.notes[0]
    assert torch.equal(weights(plain), weights(model))
    assert not tapes


def test_a_capture_that_fails_is_said_and_training_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Failing(Tape):
        def capture(self, body: Callable[[], None]) -> None:
            raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr("distillens.training.loop.graph_for", lambda device: Failing)
    plain, model = network(), network()
    history = fit(model, OneHot(), batches(True), RECIPE)
    fit(plain, OneHot(), batches(False), RECIPE)
    assert history.notes == (
        "steps run eagerly: capturing it stopped with: operation not permitted when stream is capturing",
    )
    assert torch.equal(weights(plain), weights(model))


class NoWaiting(TorchDispatchMode):
    """Fails where the host would wait for an accelerator."""

    TAGS = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # Indexing by positions does not wait; by a mask it does.
        by_position = func is torch.ops.aten.index.Tensor and args[1][0].dtype == torch.int64
        waits = not by_position and any(tag in func.tags for tag in self.TAGS)
        assert not waits, f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


def watched(
    advance_steps: int, before: Callable[[], object], after: Callable[[], object], first: int = 0
) -> Any:
    """Return a progress that calls functions after the first and the last step of every epoch.

    Epochs before the ``first`` are left out.
    """

    @contextmanager
    def show(title: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
        taken = 0

        def advance(steps: int) -> None:
            nonlocal taken
            taken += 1
            if taken <= first * advance_steps:
                return
            if taken % advance_steps == 1:
                before()
            elif taken % advance_steps == 0:
                after()

        yield advance

    return show


@pytest.mark.parametrize("how", [how for how in SUPERVISIONS if how != "live"])
def test_no_step_after_the_first_of_an_epoch_waits_for_the_device(how: str, tmp_path: Path) -> None:
    mode = NoWaiting()
    progress = watched(6, mode.__enter__, lambda: mode.__exit__(None, None, None))
    # The switch opens its teacher in the middle of an epoch, which is a boundary as well.
    recipe = RECIPE if how != "switched" else RECIPE.model_copy(update={"epochs": 1})
    trained(how, tmp_path, resident=True, recipe=recipe, progress=progress)


def test_the_test_of_waiting_sees_a_step_that_waits(tmp_path: Path) -> None:
    mode = NoWaiting()
    progress = watched(6, mode.__enter__, lambda: mode.__exit__(None, None, None))
    try:
        with pytest.raises(AssertionError, match="waits for the device"):
            fit(network(middle=Reading()), OneHot(), batches(True), RECIPE, progress=progress)
    finally:
        mode.__exit__(None, None, None)


def nan_outside_classes(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, mask: Tensor | None
) -> Tensor:
    """What a loss on labels is on a GPU, where they are not looked up."""
    wrong = (labels >= student.shape[-1]).any()
    return (student - teacher).square().mean().masked_fill(wrong, torch.nan)


def test_labels_outside_the_classes_are_named_without_a_look_at_the_device() -> None:
    examples = pictures()
    wrong = Examples(examples.inputs, examples.labels + 3, examples.indices, examples.classes)
    for resident in (True, False):
        source = Batches(wrong, BATCH, resident=resident)
        for supervision in (OneHot(), Distillation(recorded(), loss=nan_outside_classes)):
            with pytest.raises(DataError, match=r"a label is 6, outside 0 to 3"):
                fit(network(), supervision, source, RECIPE)


def test_teacher_rows_that_are_missing_or_not_finite_are_named_before_the_first_step() -> None:
    source = batches(True)
    few = RecordedTeacher(torch.zeros(SIZE - 1, 4))
    with pytest.raises(SupervisionError, match=f"no teacher logits for the example .* {SIZE - 1}"):
        fit(network(), Distillation(few), source, RECIPE)
    values = torch.zeros(SIZE, 4)
    values[3, 1] = torch.nan
    with pytest.raises(SupervisionError, match="hold a NaN"):
        fit(network(), Distillation(RecordedTeacher(values)), source, RECIPE)
    other = RecordedTeacher(torch.randn(2 * SIZE, 4), torch.arange(2 * SIZE).flip(0))
    held, plain = network(), network()
    fit(held, Distillation(other), batches(True), RECIPE)
    fit(plain, Distillation(other), batches(False), RECIPE)
    assert torch.equal(weights(held), weights(plain))


def test_divergence_names_its_step_with_captured_steps(tapes: list[Tape], tmp_path: Path) -> None:
    recipe = RECIPE.model_copy(update={"learning_rate": 1e30, "clip_norm": None})
    messages = []
    for resident in (True, False):
        with pytest.raises(DivergenceError) as caught:
            fit(network(), OneHot(), batches(resident), recipe)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_data_that_do_not_fit_stay_on_the_host_with_a_note(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("distillens.data.batches.room_for_data", lambda device: 5_000)
    source = Batches(pictures(), BATCH, device="meta")
    assert source.held is None
    assert source.note is not None
    assert "the examples take 0.00 GB and stay in the memory of the host" in source.note


def test_blocks_in_memory_are_shared_and_make_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def load() -> nn.Module:
        asked.append("x")
        return network("mlp")

    size = SIZE * 4 * 4
    monkeypatch.setattr("distillens.supervision.block_memory.UNKNOWN_MEMORY_BYTES", 2 * size)
    caches = [LogitCache(tmp_path, batches(True, seed=seed), "float32") for seed in (0, 1)]
    first = caches[0].held("d", 0, load)
    assert first is not None
    assert caches[1].held("d", 0, load) is first
    for epoch in (1, 2):
        caches[0].held("d", epoch, load)
    assert len(asked) == 3
    assert caches[0].held("d", 1, load) is not None
    assert len(asked) == 3
    again = caches[0].held("d", 0, load)
    assert again is not None
    assert torch.equal(again, first)
    assert len(asked) == 4
    on_disk = LogitCache(tmp_path, batches(True), "float32", on_disk=True)
    assert on_disk.held("d", 0, load) is None
    stored = on_disk.block("d", 0, load)
    assert torch.equal(torch.from_numpy(np.array(stored)), first)
    # A block that is in the folder is read, not computed.
    BLOCKS.clear()
    asked.clear()
    caches[0].held("d", 0, load)
    assert not asked


def together(
    folder: Path, source: Batches, *, middle: bool = False, stop: int | None = None
) -> list[Training]:
    """Return trainings of one seed with different supervisions, epochs and learning rates."""

    def interrupt(record: EpochRecord, model: nn.Module) -> None:
        if record.epoch == stop:
            raise KilledError

    trainings = []
    for place, how in enumerate(("labels", "offline", "online")):
        recipe = RECIPE.model_copy(
            update={"learning_rate": 0.02 * (place + 1), "epochs": EPOCHS + place % 2}
        )
        trainings.append(
            Training(
                network(middle=nn.Dropout(0.3) if middle else None),
                SUPERVISIONS[how](folder / "cache", source),
                recipe,
                NetworkFiles(folder / how),
                # The last of them is interrupted, when others have gone on.
                hooks=(interrupt,) if how == "online" else (),
                title=how,
                seed=5,
            )
        )
    return trainings


class KilledError(Exception):
    """Stands in for a kill."""


@pytest.mark.parametrize("way", ["dropout", "captured", "host"])
def test_networks_trained_at_the_same_time_have_the_bits_of_those_trained_alone(
    way: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    middle, source = way == "dropout", batches(way != "host")
    if way == "captured":
        request.getfixturevalue("tapes")
    several = together(tmp_path / "several", source, middle=middle)
    histories = fit_together(several, source)
    for one, history in zip(
        together(tmp_path / "alone", source, middle=middle), histories, strict=True
    ):
        torch.manual_seed(5)
        alone = fit(one.model, one.supervision, source, one.recipe, store=one.store)
        assert history.digest == alone.digest
        assert len(history.records) == one.recipe.epochs
        assert [r.loss for r in history.records] == [r.loss for r in alone.records]


def test_networks_trained_at_the_same_time_resume_from_different_epochs(tmp_path: Path) -> None:
    source = batches(True)
    whole = fit_together(together(tmp_path / "whole", source, middle=True), source)
    with pytest.raises(KilledError):
        fit_together(together(tmp_path / "cut", source, middle=True, stop=2), source)
    # Alone, one of them goes on by an epoch.
    ahead = together(tmp_path / "cut", source, middle=True, stop=3)[2]
    with pytest.raises(KilledError):
        fit_together([ahead], source)
    finished: list[str] = []
    again = [
        Training(
            **{**vars(each), "finished": lambda history, each=each: finished.append(each.title)}
        )
        for each in together(tmp_path / "cut", source, middle=True)
    ]
    resumed = fit_together(again, source)
    assert [history.digest for history in resumed] == [history.digest for history in whole]
    assert sorted(finished) == ["labels", "offline", "online"]


def test_of_networks_trained_at_the_same_time_one_that_diverges_ends_alone(tmp_path: Path) -> None:
    source = batches(True)
    several = together(tmp_path / "several", source)
    wild = RECIPE.model_copy(update={"learning_rate": 1e30, "clip_norm": None})
    several[1] = Training(**{**vars(several[1]), "recipe": wild})
    finished: list[str] = []
    several = [
        Training(
            **{**vars(each), "finished": lambda history, each=each: finished.append(each.title)}
        )
        for each in several
    ]
    with pytest.raises(DivergenceError, match="learning rate 1e\\+30"):
        fit_together(several, source)
    assert finished == ["labels", "online"]
    alone = network()
    torch.manual_seed(5)
    fit(alone, OneHot(), source, several[0].recipe)
    assert torch.equal(weights(alone), weights(several[0].model))


def test_several_networks_need_batches_without_a_state_of_their_own() -> None:
    one = Training(network(), OneHot(), RECIPE)
    with pytest.raises(TrainingError, match=r"trained at the same time on distillens"):
        fit_together([one], [(torch.zeros(4, 3, 8, 8), torch.zeros(4).long())])  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["labels", "offline", "online"])
@pytest.mark.parametrize(("way", "stop"), [("host", 1), ("resident", 2), ("captured", 1)])
def test_a_run_that_goes_on_past_its_checkpoint_has_the_bits_of_one_that_was_not_interrupted(
    how: str, way: str, stop: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if way == "captured":
        request.getfixturevalue("tapes")
    resident = way != "host"
    whole, expected = trained(
        how, tmp_path / "a", resident=resident, store=NetworkFiles(tmp_path / "whole")
    )

    def interrupt(record: EpochRecord, model: nn.Module) -> None:
        if record.epoch == stop:
            raise KilledError

    files = NetworkFiles(tmp_path / "cut")
    with pytest.raises(KilledError):
        trained(how, tmp_path / "b", resident=resident, store=files, hooks=[interrupt])
    BLOCKS.clear()
    # Another cache folder: what the first part computed is computed again.
    resumed, history = trained(how, tmp_path / "c", resident=resident, store=files)
    assert history.digest == expected.digest
    assert torch.equal(whole, resumed)
    first, second = (
        [(r.epoch, r.loss, r.accuracy, r.learning_rate) for r in h.records]
        for h in (expected, history)
    )
    assert first == second


def test_a_checkpoint_of_captured_steps_is_that_of_plain_ones(
    tmp_path: Path, tapes: list[Tape]
) -> None:
    states = []
    for resident in (True, False):
        files = NetworkFiles(tmp_path / str(resident))
        trained("labels", tmp_path, resident=resident, store=files)
        states.append(torch.load(files.state, weights_only=True)["optimizer"])
    assert tapes
    groups = [state["param_groups"][0] for state in states]
    assert groups[0] == groups[1]
    assert all(type(group["lr"]) is float for group in groups)


class Unsettled(nn.Module):
    """Uses an operation that has no deterministic implementation."""

    def forward(self, x: Tensor) -> Tensor:
        index = torch.zeros(1, dtype=torch.int64)
        return x + torch.zeros_like(x).put_(index, torch.zeros(1), accumulate=False)


def test_deterministic_training_refuses_an_operation_in_one_line_and_restores_the_setting() -> None:
    recipe = RECIPE.model_copy(update={"deterministic": True})
    with pytest.raises(
        DeviceError, match=r"^the operation put_ has no deterministic implementation"
    ):
        fit(network(middle=Unsettled()), OneHot(), batches(False), recipe)
    assert not torch.are_deterministic_algorithms_enabled()
    plain, model = network(), network()
    fit(model, OneHot(), batches(False), recipe)
    fit(plain, OneHot(), batches(False), RECIPE)
    assert torch.equal(weights(plain), weights(model))
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_students_of_a_seed_at_the_same_time_are_those_one_by_one(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    tiny |= {"complexity": None, "deviation": False, "trackers": ["tensorboard"]}
    tiny["supervisions"] = [
        {"kind": "one-hot"},
        {"kind": "online", "temperature": 4},
        {"kind": "offline", "training": {"epochs": 2}},
        {"kind": "offline", "name": "other batches", "training": {"batch_size": 16}},
        {"kind": "self-distillation"},
    ]
    shown: list[str] = []

    @contextmanager
    def progress(title: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
        shown.append(title)
        yield lambda steps: None
        shown.append(f"end of {title}")

    results = [
        run(tiny, tmp_path / spread.__name__, spread=spread, progress=progress)
        for spread in (one_by_one, seed_by_seed)
    ]
    cells = [[(c.supervision, c.seed, c.weights_digest) for c in r.cells] for r in results]
    assert cells[0] == cells[1]
    # The bars of three students were open at once.
    again = shown[shown.index("end of no KD, seed 0") + 1 :]
    together = again[again.index("no KD, seed 0") :]
    assert together[1:3] == ["online τ=4, seed 0", "offline τ=1, seed 0"]


def test_students_that_do_not_fit_at_the_same_time_are_trained_one_by_one_with_a_warning(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise TrainingError("memory ran out") from torch.OutOfMemoryError("full")

    monkeypatch.setattr("distillens.study.students.train_networks", full)
    tiny |= {"complexity": None, "deviation": False}
    with pytest.warns(UserWarning, match="the 3 students of seed 0 do not fit on the device"):
        result = run(tiny, tmp_path / "run", spread=seed_by_seed)
    assert not result.open_cells
