"""Complexity of a user's model and targets: two ways to solve, intervals, the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from distillens.analyses.kernel_complexity import kernel_complexity
from distillens.cli.main import main
from distillens.errors import KernelError, MeasureError
from distillens.kernel import oracle_gram
from distillens.kernel.products import KernelProduct
from distillens.models import ModelRecipe, build_model
from distillens.results.base import from_json
from distillens.results.complexity import KernelComplexity

EXAMPLES = 40


@pytest.fixture
def network() -> nn.Module:
    return build_model(ModelRecipe.model_validate({"name": "lenet5"}), (1, 12, 12), 3, seed=1)


@pytest.fixture
def inputs() -> torch.Tensor:
    return torch.randn(EXAMPLES, 1, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def targets() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    return {"signs": rng.choice([-1.0, 1.0], EXAMPLES), "ones": np.ones(EXAMPLES)}


def by_hand(
    network: nn.Module, inputs: torch.Tensor, y: np.ndarray, share: float
) -> tuple[float, float, float]:
    """Return YᵀK⁻¹Y, eq. 49 and eq. 50 from the oracle's Gram."""
    gram = oracle_gram(network, inputs, outputs=1).numpy()
    gram += share * np.trace(gram) / len(gram) * np.eye(len(gram))
    with torch.no_grad():
        f = network.eval().double()(inputs.double())[:, 1].numpy()
    network.float()

    def form(v: np.ndarray) -> float:
        return float(v @ np.linalg.solve(gram, v))

    def adjusted(v: np.ndarray) -> float:
        return float(np.sqrt(form(v) * np.trace(gram))) / len(v)

    return form(y), adjusted(y - f), adjusted(y)


@pytest.mark.parametrize(
    ("share", "copies", "keep"),
    [(0.0, 4, True), (1e-2, 4, True), (1e-2, 10**9, True), (1e-2, 10**9, False)],
)
def test_equals_the_definition_by_factor_and_by_iteration(
    share: float,
    copies: int,
    keep: bool,
    monkeypatch: pytest.MonkeyPatch,
    network: nn.Module,
    inputs: torch.Tensor,
    targets: dict[str, np.ndarray],
) -> None:
    network.eval()
    # Of the Gram that a factorisation holds: as many as no memory has.
    monkeypatch.setattr("distillens.analyses.kernel_complexity._COPIES", copies)
    monkeypatch.setattr(
        "distillens.kernel.ntk.KernelProduct",
        lambda *given, **named: KernelProduct(*given, **{**named, "keep": keep}),
    )
    found = kernel_complexity(network, inputs, targets, outputs=1, ridge=share, width=1e-6)
    kept = "kept" if keep else "made for each product"
    by_iteration = f"conjugate gradients, float64, gradients {kept}"
    assert found.method == ("Cholesky, float64" if copies == 4 else by_iteration)
    for row, (name, y) in zip(found.targets, targets.items(), strict=True):
        plain, adjusted, star = by_hand(network, inputs, y, share)
        assert row.name == name
        assert row.determined
        assert row.plain_low <= plain * (1 + 1e-9)
        assert row.plain_high >= plain * (1 - 1e-9)
        assert row.plain == pytest.approx(plain, rel=1e-5)
        assert row.adjusted == pytest.approx(adjusted, rel=1e-5)
        assert row.adjusted_star == pytest.approx(star, rel=1e-5)


def test_a_kernel_that_is_zero_is_infinite_and_says_why(
    inputs: torch.Tensor, targets: dict[str, np.ndarray]
) -> None:
    class Without(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input.flatten(1)).detach()

    found = kernel_complexity(Without(144, 2), inputs, targets, outputs=0)
    assert found.trace == 0
    assert all(np.isinf(each.plain) and np.isnan(each.adjusted_star) for each in found.targets)
    assert any("the kernel is zero" in note for note in found.notes)
    assert found.uncertified == ()


def test_a_singular_kernel_is_infinite_with_uncertified_values(
    network: nn.Module, inputs: torch.Tensor
) -> None:
    network.eval()
    twice = torch.cat([inputs[:10], inputs[:10]])
    found = kernel_complexity(network, twice, {"y": np.arange(20.0)}, outputs=0)
    assert found.targets[0].plain == np.inf
    assert found.with_ridge is not None
    assert np.isfinite(found.uncertified[0].plain)
    assert any("singular" in note for note in found.notes)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"ridge": -1.0}, KernelError, "the ridge is -1"),
        ({"max_memory": 100}, KernelError, "give a ridge"),
        ({"outputs": 3}, KernelError, "no output 3"),
        ({"targets": {"y": np.ones(7)}}, MeasureError, r"shape \(7,\)"),
        ({"targets": {"y": np.full(EXAMPLES, np.nan)}}, MeasureError, "NaN"),
        ({"targets": {}}, MeasureError, "no targets"),
        ({"inputs": torch.zeros(0, 1, 12, 12)}, KernelError, "at least one example"),
    ],
)
def test_bad_input_is_one_line(
    change: dict[str, object],
    error: type[Exception],
    words: str,
    network: nn.Module,
    inputs: torch.Tensor,
    targets: dict[str, np.ndarray],
) -> None:
    network.eval()
    given = {"inputs": inputs, "targets": targets, "outputs": 1} | change
    with pytest.raises(error, match=words) as caught:
        kernel_complexity(network, **given)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.fixture
def files(network: nn.Module, inputs: torch.Tensor, tmp_path: Path) -> list[str]:
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    np.save(tmp_path / "x.npy", inputs.numpy())
    np.save(tmp_path / "labels.npy", np.arange(EXAMPLES) % 3)
    np.save(tmp_path / "floats.npy", np.arange(EXAMPLES) % 3.0)
    np.save(tmp_path / "words.npy", np.array(["a", "b"] * (EXAMPLES // 2)))
    np.save(tmp_path / "teacher.npy", np.random.default_rng(0).standard_normal((EXAMPLES, 3)))
    arguments = ["complexity", "--model", "lenet5", "--weights", "w.safetensors"]
    arguments += ["--inputs", "x.npy", "--classes", "3"]
    return [
        str(tmp_path / word) if word.endswith(("npy", "safetensors")) else word
        for word in arguments
    ]


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    printed = capsys.readouterr()
    code = stopped.value.code
    return (code if isinstance(code, int) else 0), printed.out, printed.err


def test_the_command_codes_labels_and_takes_a_column_of_targets(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    targets = ["--targets", f"labels={tmp_path}/labels.npy"]
    targets += ["--targets", f"teacher={tmp_path}/teacher.npy"]
    status, out, _ = run([*files, *targets, "--output", "1", "--json"], capsys)
    assert status == 0
    found = from_json(KernelComplexity, out, "the output")
    assert [row.name for row in found.targets] == ["labels", "teacher"]
    # Labels 1 are coded 2/3, the others −1/3.
    share = float(np.mean(np.arange(EXAMPLES) % 3 == 1))
    size = np.sqrt(share * (2 / 3) ** 2 + (1 - share) * (1 / 3) ** 2)
    assert found.targets[0].target_size == pytest.approx(size)
    teacher = np.load(tmp_path / "teacher.npy")[:, 1]
    assert found.targets[1].target_size == pytest.approx(np.sqrt(np.mean(teacher**2)))


def test_arrays_of_another_byte_order_are_the_same(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*files, "--targets", f"y={tmp_path}/labels.npy", "--no-profile", "--json"]
    wanted = from_json(KernelComplexity, run(arguments, capsys)[1], "the output")
    for name in ("x", "labels"):
        given = np.load(tmp_path / f"{name}.npy")
        np.save(tmp_path / f"{name}.npy", given.astype(given.dtype.newbyteorder()))
    found = from_json(KernelComplexity, run(arguments, capsys)[1], "the output")
    assert found.targets == wanted.targets
    np.save(tmp_path / "x.npy", np.load(tmp_path / "x.npy").astype(np.longdouble))
    found = from_json(KernelComplexity, run(arguments, capsys)[1], "the output")
    assert found.targets == wanted.targets


def test_the_plan_computes_nothing(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = run([*files, "--targets", f"y={tmp_path}/labels.npy", "--plan"], capsys)
    assert status == 0
    assert "40 x 40 examples" in out
    assert "conv1.weight" in out


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--targets", "labels"], "NAME=FILE"),
        (["--targets", "y=nowhere.npy"], "no file nowhere.npy"),
        (["--targets", "y=HERE/teacher.npy", "--output", "5-0"], "no output 5"),
        (["--targets", "y=HERE/labels.npy", "--output", "a"], "neither a logit"),
        (["--targets", "y=HERE/w.safetensors"], "no readable npy"),
        (
            ["--targets", "y=HERE/floats.npy"],
            "whole numbers from 0 to 2 as float64; give labels as",
        ),
        (["--targets", "y=HERE/words.npy"], "labels are integers, targets are floats"),
        (["--targets", "y=HERE/labels.npy", "--max-memory", "-1"], "--max-memory is -1"),
        (["examples=5", "--targets", "y=HERE/labels.npy"], "measure RUN complexity"),
        ([], "at least one --targets"),
    ],
)
def test_bad_options_are_one_line(
    more: list[str],
    words: str,
    files: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [word.replace("HERE", str(tmp_path)) for word in more]
    status, _, err = run([*files, *given], capsys)
    assert status == 2
    assert words in err
    assert len(err.strip().splitlines()) == 1


def test_no_model_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(["complexity"], capsys)
    assert (status, json.dumps(err.count("\n"))) == (2, "1")
    assert "give --model, --weights, --inputs, --classes" in err
