"""Each network sees its inputs normalised as the recipe says, and what was chosen is recorded."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import curves_of_run, measure_all
from torch import Tensor, nn

import distillens as dl
from distillens.analyses.eigenspace.dynamics import EigenspaceTask, measure_eigenspace
from distillens.analyses.gram_profile import compare_kernels
from distillens.data import Augmentation, Batches, Normalisation, examples_from_arrays, load_splits
from distillens.data.normalisation import normalisation_for
from distillens.data.prepare import subset
from distillens.data.recipe import PRESETS, DataRecipe, MeanAndStd
from distillens.errors import DataError, ModelError, RecipeError
from distillens.export.export import export_run, load_export
from distillens.kernel import ntk_similarity
from distillens.models import MLP, ModelRecipe, build_model, load_weights, save_weights
from distillens.models.external import pretrained_normalisation
from distillens.results.training import StudyResult
from distillens.runs.layout import Run
from distillens.study.context import StudyContext
from distillens.study.networks import network_logits
from distillens.study.normalisations import between, choose_scales
from distillens.study.reading import parse_recipe, read_recipe
from distillens.study.students import StudentTeachers
from distillens.study.teacher import prepare_teacher
from distillens.supervision.cache import LogitCache
from distillens.training import accelerator_for, predict

RNG = np.random.default_rng(0)
IMAGES = examples_from_arrays(
    RNG.integers(0, 256, (12, 3, 4, 4), dtype=np.uint8), np.arange(12) % 3
)
GIVEN = MeanAndStd(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
MEAN, STD = 0.2, 0.5
"""Of the teacher that was trained elsewhere, on grey images."""


def tensor(numbers: tuple[float, ...]) -> Tensor:
    return torch.tensor(numbers).reshape(1, -1, 1, 1)


class Internal(nn.Module):
    """A network that normalises its inputs itself, as many published ones do."""

    def __init__(self, network: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.network, self.mean, self.std = network, mean, std

    def forward(self, x: Tensor) -> Tensor:
        return self.network((x - self.mean) / self.std)


def test_inside_or_outside_the_network_is_the_same() -> None:
    plain = MLP((3, 4, 4), 3, (8,))
    inside = Internal(plain, tensor(GIVEN.mean), tensor(GIVEN.std))
    alone = predict(inside, IMAGES, normalisation_for("none", IMAGES, "k"))
    outside = predict(plain, IMAGES, normalisation_for(GIVEN, IMAGES, "k"))
    np.testing.assert_allclose(alone, outside, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_per_channel_on_pixels_in_0_1(name: str) -> None:
    mean, std = PRESETS[name]
    batch = next(Batches(IMAGES, 12, normalisation=normalisation_for(name, IMAGES, "k")).epoch(0))
    order = Batches(IMAGES, 12).order(0)
    expected = (IMAGES.inputs[order].float() / 255 - tensor(mean)) / tensor(std)
    torch.testing.assert_close(batch.inputs, expected)
    floats = examples_from_arrays((IMAGES.inputs / 255).numpy(), IMAGES.labels)
    same = next(Batches(floats, 12, normalisation=normalisation_for(name, floats, "k")).epoch(0))
    torch.testing.assert_close(same.inputs, batch.inputs)


@pytest.mark.parametrize(
    ("asked", "inputs", "message"),
    [
        (
            "imagenet",
            IMAGES.inputs[:, :1],
            r"'imagenet' has 3 channels, the inputs have 1 channels; for gr",
        ),
        ("cifar10", torch.zeros(12, 5), "is for RGB images"),
        ("imagenet", IMAGES.inputs.float(), "for images with values in .0, 1.; these range from"),
        ("cifar10", IMAGES.inputs.float() / 128 - 1, "for images with values in"),
        (GIVEN, IMAGES.inputs.float(), "give mean and std in their unit"),
        (GIVEN, torch.zeros(12, 5), "has 3 numbers, the inputs have 5 features"),
    ],
)
def test_a_normalisation_that_does_not_fit_is_refused(
    asked: Any, inputs: Tensor, message: str
) -> None:
    examples = examples_from_arrays(inputs, IMAGES.labels)
    with pytest.raises(DataError, match=f"key.*{message}"):
        normalisation_for(asked, examples, "key")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("imagnet", "no normalisation is called 'imagnet'; did you mean 'imagenet'"),
        ({"mean": [0.5], "std": [0.5, 0.5]}, "mean has 1 numbers, std has 2"),
        ({"mean": [0.5], "std": [0]}, "greater than 0"),
        (
            {"mean": [0.5], "std": [1], "sd": 1},
            "unknown key 'data.normalisation.sd'; did you mean 'std'",
        ),
        ([0.5, 0.5], "give one of data, none"),
        (0.5, "give one of data, none"),
    ],
)
def test_wrong_values_are_one_line(tiny: dict[str, Any], value: Any, message: str) -> None:
    for part in ("data", "teacher", "student"):
        changed = {**tiny, part: {**tiny[part], "normalisation": value}}
        with pytest.raises(RecipeError, match=message.replace("data.n", rf"{part}\.n")) as caught:
            parse_recipe(changed)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("origin", [{"logits": "a.npz"}, {"run": "other"}])
def test_a_teacher_without_a_model_takes_no_normalisation(
    tiny: dict[str, Any], origin: dict[str, str]
) -> None:
    with pytest.raises(RecipeError, match="takes no normalisation"):
        parse_recipe({**tiny, "teacher": {**origin, "normalisation": "none"}})


def test_the_default_keeps_the_fingerprints_of_earlier_versions(tmp_path: Path) -> None:
    splits = load_splits(DataRecipe(test_size=300))
    known = "8a7cc8d5fec88a1be371ed311582f79f510a8a6f1b16d25c922e6f959a5b1144"
    assert splits.fingerprint == known
    names = {}
    for asked in ("data", "none", MeanAndStd(mean=(0.5,), std=(0.5,))):
        batches = Batches(
            splits.train, 128, normalisation=normalisation_for(asked, splits.train, "k")
        )
        key = LogitCache(tmp_path, batches, "float32").key("digest", 1)
        described = json.dumps(key, sort_keys=True).encode()
        names[str(asked)] = hashlib.sha256(described).hexdigest()[:32]
    assert names["data"] == "9bd41053d45c4ffeaef7680636be9a46"
    assert len(set(names.values())) == 3


# A study whose teacher was trained elsewhere.


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StudyResult, nn.Module]:
    """A finished run with a teacher that wants (x - 0.2) / 0.5, and a student that wants x."""
    folder = tmp_path_factory.mktemp("normalisation")
    torch.manual_seed(0)
    teacher = MLP((1, 8, 8), 10, (16,)).eval()
    save_weights(folder / "teacher.safetensors", teacher)
    part = {"epochs": 1, "batch_size": 32, "learning_rate": 0.05}
    recipe = {
        "name": "foreign",
        "data": {
            "source": "digits", "train_size": 60, "test_size": 40, "normalisation": "none",
            "augmentation": {"crop": 1},
        },
        "teacher": {
            "model": {"name": "mlp", "hidden": [16]},
            "checkpoint": str(folder / "teacher.safetensors"),
            "normalisation": {"mean": [MEAN], "std": [STD]},
        },
        "student": {"model": {"name": "mlp", "hidden": [4]}, "training": part},
        "supervisions": [
            {"kind": "one-hot", "name": "labels"},
            {"kind": "offline", "name": "taught"},
            {"kind": "self-distillation", "name": "own", "generations": 1},
        ],
        "complexity": {"examples": 16, "epochs": [1], "random_draws": 1},
    }  # fmt: skip
    result = dl.run(recipe, folder / "run")
    return folder / "run", result, teacher


def test_each_network_sees_its_own_pixels(study: tuple[Path, StudyResult, nn.Module]) -> None:
    folder, _, teacher = study
    run = Run(folder)
    splits = load_splits(
        DataRecipe(train_size=60, test_size=40, augmentation={"crop": 1})  # type: ignore[arg-type]
    )
    raw = Batches(splits.train, 60, seed=None, augmentation=Augmentation(crop=1))
    pixels = splits.test.inputs.float() / 255
    with torch.no_grad():
        of_teacher = teacher((pixels - MEAN) / STD)
        of_block = teacher((next(raw.epoch(0)).inputs - MEAN) / STD)
    stored = torch.from_numpy(network_logits(run.teacher)["test"])
    torch.testing.assert_close(stored, of_teacher, rtol=1e-4, atol=1e-5)
    # Students are taught by the logits of the same augmented images.
    keys = {path: json.loads(path.read_text()) for path in run.cache.glob("*.json")}
    student = build_model(ModelRecipe(name="mlp", hidden=[4]), (1, 8, 8), 10, seed=0)  # type: ignore[call-arg]
    files = run.student(0, "labels", 0)
    load_weights(files.weights(1), student)
    with torch.no_grad():
        of_student = student.eval()(next(raw.epoch(0)).inputs)
        plain = student(pixels)
    stored = torch.from_numpy(network_logits(files)["test"])
    torch.testing.assert_close(stored, plain, rtol=1e-4, atol=1e-5)
    blocks = {
        len(key["normalisation"]): np.load(path.with_suffix(".npy"))
        for path, key in keys.items()
        if key["epoch"] == 0
    }
    np.testing.assert_allclose(blocks[2], of_block.numpy(), rtol=1e-4, atol=1e-5)
    # A student of the generation before is a student, whose inputs are left alone.
    np.testing.assert_allclose(blocks[0], of_student.numpy(), rtol=1e-4, atol=1e-5)


def test_what_was_chosen_is_recorded_and_shown(
    study: tuple[Path, StudyResult, nn.Module],
) -> None:
    folder, result, _ = study
    data = json.loads((folder / "data.json").read_text())
    assert data["teacher_normalisation"]["mean"] == pytest.approx([MEAN])
    assert data["teacher_normalisation"]["deviation"] == pytest.approx([STD])
    assert data["student_normalisation"]["mean"] == [0]
    assert result.provenance.normalisation == (
        "teacher: given in the recipe: mean 0.2, standard deviation 0.5; "
        "student: none: inputs as they are"
    )


def test_the_export_holds_the_students_normalisation(
    study: tuple[Path, StudyResult, nn.Module], tmp_path: Path
) -> None:
    folder, _, _ = study
    export_run(folder, student="taught", formats=("safetensors",), out=tmp_path / "out")
    network, card = load_export(tmp_path / "out")
    assert (card.mean, card.deviation) == ((0.0,), (1.0,))
    splits = load_splits(DataRecipe(train_size=60, test_size=40))
    stored = network_logits(Run(folder).student(1, "taught", 0))["test"]
    found = network(splits.test.inputs.float() / 255).detach().numpy()
    np.testing.assert_allclose(found, stored, rtol=1e-4, atol=1e-5)


def test_kernels_are_compared_on_the_teachers_own_pixels(
    study: tuple[Path, StudyResult, nn.Module],
) -> None:
    """They are those of networks that have their normalisation inside."""
    folder, _, teacher = study
    found = curves_of_run(folder).teacher_kernel
    assert found is not None
    recipe = read_recipe(folder / "recipe.yaml")
    context = StudyContext.of(recipe, Run(folder), accelerator_for("float32"), False)
    asked = recipe.complexity
    assert asked is not None
    measured = subset(context.splits.test, asked.examples, asked.seed, "complexity.examples")
    assert context.normalisation_of("student") is None
    inputs = measured.inputs.float() / 255
    student = context.load(recipe.student.model, Run(folder).student(0, "labels", 0), 1)
    inside = Internal(teacher, torch.tensor(MEAN), torch.tensor(STD))
    expected = compare_kernels(student, inside, inputs, None)
    assert found.similarity == pytest.approx(expected.similarity, rel=1e-3)
    assert found.alignment == pytest.approx(expected.alignment, rel=1e-3)


def test_an_audit_gives_each_network_its_own_pixels(
    study: tuple[Path, StudyResult, nn.Module],
) -> None:
    """Checkpoints must give the logits that the run stored; kernels are as in the report."""
    folder, _, teacher = study
    audit = measure_all(
        folder, student="taught", seed=0, over_training=4, kernel_examples=6, resamples=100
    )
    recipe, run = read_recipe(folder / "recipe.yaml"), Run(folder)
    context = StudyContext.of(recipe, run, accelerator_for("float32"), False)
    drawn = np.sort(np.random.default_rng(0).permutation(40)[:6])
    pixels = context.splits.test.inputs[drawn].float() / 255
    student = context.load(recipe.student.model, run.student(1, "taught", 0), 1)
    inside = Internal(teacher, torch.tensor(MEAN), torch.tensor(STD))
    expected = ntk_similarity(student, inside, pixels, probes=16, seed=0)
    assert audit.kernels is not None
    found = audit.kernels.students[0].likenesses[0].ntk_similarity.value
    assert found == pytest.approx(expected.value, rel=1e-3)


def test_a_cotrained_teacher_and_the_eigenspace_have_the_teachers_pixels(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    tiny |= {"complexity": None, "deviation": False}
    tiny["supervisions"] = [{"kind": "one-hot"}, {"kind": "co-trained", "name": "beside"}]
    tiny["teacher"]["normalisation"] = "none"
    dl.run(tiny, tmp_path / "run")
    recipe, run = parse_recipe(tiny), Run(tmp_path / "run")
    context = StudyContext.of(recipe, run, accelerator_for("float32"), False)
    batches = {
        role: context.batches(recipe.student.training, 0, role) for role in ("teacher", "student")
    }
    teacher = prepare_teacher(context)
    roles = ("teacher", "student")
    of_teacher, of_student = (
        LogitCache(run.cache, batches[role], "float32").teacher for role in roles
    )
    steps = len(batches["student"])
    taught = StudentTeachers(context, teacher, of_teacher, of_student, 3, steps, None).cotrained()
    alone = context.build(teacher.model, 1000, "teacher").eval()  # type: ignore[arg-type]
    with torch.no_grad():
        expected = alone(next(batches["teacher"].epoch(0)).inputs)
    found = taught.logits(next(batches["student"].epoch(0)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    # The first layers of the two see other inputs, whose eigenvectors cannot be compared.
    with pytest.raises(ModelError, match="different inputs"):
        measure_eigenspace([tmp_path / "run"], EigenspaceTask())


def test_a_later_run_takes_the_teachers_normalisation_with_it(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    tiny |= {
        "complexity": None,
        "deviation": False,
        "supervisions": [{"kind": "offline", "name": "taught"}],
    }
    tiny["teacher"]["normalisation"] = "none"
    dl.run(tiny, tmp_path / "first")
    second = {**tiny, "teacher": {"run": str(tmp_path / "first")}}
    dl.run(second, tmp_path / "second")
    of_both = [
        json.loads((tmp_path / name / "data.json").read_text())["teacher_normalisation"]
        for name in ("first", "second")
    ]
    assert of_both[0] == of_both[1]
    # The second run found the first one's teacher logits, made from the same inputs.
    assert len(list((tmp_path / "first").rglob("*.npy"))) == 1
    assert not list((tmp_path / "second").rglob("*.npy"))
    students = [Run(tmp_path / name).student(0, "taught", 0) for name in ("first", "second")]
    first, again = (network_logits(each)["test"] for each in students)
    assert np.array_equal(first, again)


def test_between_two_normalisations_a_network_is_the_same() -> None:
    network = MLP((3, 4, 4), 3, (8,)).eval()
    scales = [
        normalisation_for(asked, IMAGES, "k") for asked in ("data", "none", "imagenet", GIVEN)
    ]
    for mine in scales:
        for wanted in scales:
            wrapped = between(mine, wanted, network)
            np.testing.assert_allclose(
                predict(wrapped, IMAGES, mine),
                predict(network, IMAGES, wanted),
                rtol=1e-4,
                atol=1e-5,
            )
    assert between(scales[0], scales[0], network) is network


# Builders and other libraries.


def _builder(input_shape: tuple[int, ...], outputs: int, normalisation: Any = None) -> nn.Module:
    network: Any = MLP(input_shape, outputs, (2,))
    network.seen = normalisation
    return network


def test_builders_that_name_it_get_the_normalisation(
    monkeypatch: pytest.MonkeyPatch, tiny: dict[str, Any], tmp_path: Path
) -> None:
    def plain(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        return MLP(input_shape, outputs, (2,))

    module: Any = SimpleNamespace(build=_builder, plain=plain)
    monkeypatch.setitem(sys.modules, "foreign_builders", module)
    for part in ("teacher", "student"):
        tiny[part]["model"] = {"name": "foreign_builders:build"}
    tiny["teacher"]["normalisation"] = {"mean": [0.25], "std": [0.5]}
    recipe = parse_recipe(tiny, trust_code=True)
    context = StudyContext.of(recipe, Run(tmp_path / "run"), accelerator_for("float32"), True)
    teacher: Any = context.build(recipe.student.model, 0, "teacher")
    assert teacher.seen == ((0.25,), (0.5,))
    student: Any = context.build(recipe.student.model, 0)
    measured = Normalisation.of(context.splits.train)
    assert student.seen == ((float(measured.mean),), (float(measured.deviation),))
    context.build(ModelRecipe(name="foreign_builders:plain"), 0)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.5, 0.25]},
         ((0.5, 0.4, 0.3), (0.5, 0.5, 0.25))),
        ({"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_normalize": False}, ((0,), (1,))),
        # Not rescaled to [0, 1] first: mean and deviation are those of bytes.
        ({"image_mean": [51.0], "image_std": [102.0], "do_rescale": False}, ((0.2,), (0.4,))),
        # EfficientNet: byte / 127.5 - 1 is normalised.
        ({"image_mean": [0.5], "image_std": [0.5], "rescale_factor": 1 / 127.5,
          "rescale_offset": True}, ((0.75,), (0.25,))),
        ({"size": 224}, None),
        (None, None),
    ],
)  # fmt: skip
def test_image_processors_say_how_pretrained_networks_want_pixels(
    tmp_path: Path, config: dict[str, Any] | None, expected: Any
) -> None:
    pytest.importorskip("transformers")
    if config is not None:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    name = f"transformers:{tmp_path}"
    found = pretrained_normalisation(name, {}, nn.Module)
    if expected is None:
        assert found is None
    else:
        assert found is not None
        np.testing.assert_allclose(found[0], expected[0], atol=1e-12)
        np.testing.assert_allclose(found[1], expected[1])
    assert pretrained_normalisation(name, {"pretrained": False}, nn.Module) is None


def test_a_damaged_image_processor_is_no_default(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(ModelError, match="valid JSON"):
        pretrained_normalisation(f"transformers:{tmp_path}", {}, nn.Module)


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_model(name: str, num_classes: int, in_chans: int, pretrained: bool = False) -> Any:
        network: Any = MLP((in_chans, 8, 8), num_classes, (4,))
        network.pretrained_cfg = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2)}
        return network

    fake: Any = SimpleNamespace(
        create_model=create_model, is_model=lambda name: True, list_models=lambda: []
    )
    monkeypatch.setitem(sys.modules, "timm", fake)


@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize(
    ("model", "data", "own", "mean", "origin"),
    [
        ({"pretrained": True}, None, None, (0.5, 0.4, 0.3), "pretrained_cfg of timm:net"),
        ({}, None, None, None, "measured on the training examples"),
        ({"pretrained": True}, "data", None, None, "measured on the training examples"),
        ({"pretrained": True}, "data", "imagenet", PRESETS["imagenet"][0], "imagenet"),
    ],
)
def test_defaults_of_a_library_are_for_pretrained_weights_without_a_choice(
    tiny: dict[str, Any],
    tmp_path: Path,
    model: dict[str, Any],
    data: str | None,
    own: str | None,
    mean: tuple[float, ...] | None,
    origin: str,
) -> None:
    inputs = RNG.integers(0, 256, (30, 3, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "d.npz", train_inputs=inputs, train_labels=np.arange(30) % 3)
    tiny["data"] = {"source": "npz", "path": str(tmp_path / "d.npz"), "test_size": 6}
    tiny["data"]["normalisation"] = data
    tiny["student"] |= {"model": {"name": "timm:net", **model}, "normalisation": own}
    recipe, run = parse_recipe(tiny), Run(tmp_path / "run")
    train = load_splits(recipe.data).train
    scales = choose_scales(recipe, run, train, trust_code=False)
    expected = Normalisation.of(train).mean.flatten() if mean is None else torch.tensor(mean)
    torch.testing.assert_close(torch.tensor(scales["student"].numbers)[0], expected)
    assert scales["student"].origin == origin
    assert scales["teacher"].origin == "measured on the training examples"


@pytest.mark.usefixtures("timm")
def test_a_run_of_an_earlier_version_keeps_its_normalisation(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    """Earlier versions normalised the inputs of pretrained networks like all others."""
    tiny |= {"complexity": None, "deviation": False, "supervisions": [{"kind": "one-hot"}]}
    tiny["student"]["model"] = {"name": "timm:net", "pretrained": True}
    dl.run(tiny, tmp_path / "run")
    path = tmp_path / "run" / "data.json"
    data = json.loads(path.read_text())
    assert data["student_normalisation"]["mean"] == pytest.approx([0.4])
    recipe, run = parse_recipe(tiny), Run(tmp_path / "run")
    train = load_splits(recipe.data).train
    kept = choose_scales(recipe, run, train, trust_code=False)["student"]
    assert kept.origin == "pretrained_cfg of timm:net, averaged over channels"
    for key in ("teacher_normalisation", "student_normalisation"):
        del data[key]
    path.write_text(json.dumps(data))
    scales = choose_scales(recipe, run, train, trust_code=False)
    assert scales["student"] == scales["data"]
