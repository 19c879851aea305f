"""A device that is missing, full or lacks an operation: one line that says what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import blobs, command, refused
from torch import Tensor, nn

import distillens
from distillens.data import Batches, LoaderBatches
from distillens.errors import DeviceError, DistillensError, KernelError, ModelError
from distillens.forward.device_errors import checked_device, limit_memory, ran_out_of_memory
from distillens.kernel import EmpiricalNTK, oracle_gram
from distillens.kernel.factors.limits import Limits
from distillens.models import measure_cost
from distillens.supervision import OneHot
from distillens.training import TrainingRecipe, accelerator_for, fit, predict
from distillens.training.memory import largest_step

FULL = (
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.10 GiB of which "
    "20.81 MiB is free. Process 1 has 79.07 GiB memory in use."
)
NOT_DETERMINISTIC = (
    "cumsum_cuda_kernel does not have a deterministic implementation, but you set "
    "'torch.use_deterministic_algorithms(True)'."
)
ERRORS: dict[str, Callable[[], Exception]] = {
    "cuda": lambda: torch.OutOfMemoryError(FULL),
    "cpu": lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you "
        "tried to allocate 9000000000000 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "python": MemoryError,
}


class Limited(nn.Module):
    """A network that takes so many examples with a graph, and so many without one."""

    def __init__(
        self, graph: int, without: int, error: Callable[[], Exception] = ERRORS["cuda"]
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
        self.graph, self.without, self.error = graph, without, error
        self.tried: list[int] = []

    def forward(self, inputs: Tensor) -> Tensor:
        self.tried.append(len(inputs))
        if len(inputs) > (self.graph if torch.is_grad_enabled() else self.without):
            raise self.error()
        return self.layers(inputs)


@pytest.fixture
def _no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


ASKING: dict[str, Callable[[], Any]] = {
    "batches": lambda: Batches(blobs(), 8, device="cuda"),
    "loader": lambda: LoaderBatches([(torch.zeros(2, 5), torch.zeros(2).long())], "cuda"),
    "predict": lambda: predict(nn.Linear(5, 3), blobs(), None, device="cuda"),
    "cost": lambda: measure_cost(nn.Linear(5, 3), (5,), device=torch.device("cuda")),
}


@pytest.mark.usefixtures("_no_cuda")
@pytest.mark.parametrize("asked", ASKING)
def test_cuda_that_is_not_there_is_said_by_whoever_is_asked_for_it(asked: str) -> None:
    with pytest.raises((DeviceError, ModelError)) as found:
        ASKING[asked]()
    text = str(found.value)
    assert "cuda" in text
    assert "is a build for CPUs" in text
    assert "or ask for cpu" in text
    assert "\n" not in text


@pytest.mark.usefixtures("_no_cuda")
def test_every_command_says_that_the_environment_asks_for_cuda_in_vain(
    tiny: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tiny |= {"complexity": None, "supervisions": tiny["supervisions"][1:2]}
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(yaml.safe_dump(tiny))
    distillens.run(tiny, run)
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "cuda:1")
    new = tmp_path / "new"
    for line in (
        refused(capsys, "run", recipe, "--out", new),
        refused(capsys, "run", recipe, "--plan", "--out", new),
        refused(capsys, "run", recipe, "--out", run),
        refused(capsys, "measure", run, "confidence"),
        refused(capsys, "eigenspace", run, "--out", new),
    ):
        assert "ACCELERATE_TORCH_DEVICE is 'cuda:1', but torch sees no CUDA device" in line
    assert command("check", recipe, "--out", new) == 2
    assert "ACCELERATE_TORCH_DEVICE" in capsys.readouterr().out
    assert not new.exists()
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "cpu")
    assert accelerator_for("float32").device.type == "cpu"


def test_why_there_is_no_cuda_depends_on_the_build_and_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def said(device: str) -> str:
        with pytest.raises(DeviceError) as found:
            checked_device(device, "--device")
        return str(found.value)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "with CUDA_VISIBLE_DEVICES=''" in said("cuda")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert "nvidia-smi" in said("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert checked_device("cuda:1") == torch.device("cuda:1")
    assert "sees 2 CUDA device(s); give cuda:0 to cuda:1" in said("cuda:2")
    assert "no device of torch" in said("gpu")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: None)
    assert "give cpu" in said("mps")
    assert checked_device("cpu").type == "cpu"


@pytest.mark.parametrize("kind", ERRORS)
def test_a_batch_that_is_too_large_is_told_with_one_that_fits(kind: str) -> None:
    recipe = TrainingRecipe(epochs=1, batch_size=48, learning_rate=0.05)
    model, batches = Limited(10, 48, ERRORS[kind]), Batches(blobs(), 48)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with pytest.raises(DeviceError) as found:
        fit(model, OneHot(), batches, recipe, title="no KD, seed 0")
    text = str(found.value)
    assert text.startswith("memory ran out on a step of no KD, seed 0: ")
    assert ("the GPU has 79.10 GiB, of which 20.81 MiB are free" in text) == (kind == "cuda")
    assert ("this machine has" in text) == (kind != "cuda")
    assert "a batch has 48 examples of shape 5, and 6 at once fit" in text
    assert "set training.accumulate=8, which gives the same result" in text
    assert "training.batch_size=6" in text
    assert model.tried == [48, 48, 24, 12, 6]
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name])
    # What the message advises works.
    fit(model, OneHot(), batches, recipe.model_copy(update={"accumulate": 8}))
    fit(model, OneHot(), Batches(blobs(), 6), recipe.model_copy(update={"batch_size": 6}))


def test_what_else_may_be_too_large_in_training() -> None:
    recipe = TrainingRecipe(epochs=1, batch_size=16, learning_rate=0.05)
    with pytest.raises(DeviceError, match="not even one example fits; use a smaller network"):
        fit(Limited(0, 0), OneHot(), Batches(blobs(), 16), recipe)

    class Hungry(OneHot):
        def loss(self, *arguments: Any, **named: Any) -> Tensor:
            raise torch.OutOfMemoryError(FULL)

    with pytest.raises(DeviceError, match=r"16 examples of shape 5, which fits by itself.*accumul"):
        fit(Limited(16, 16), Hungry(), Batches(blobs(), 16), recipe)

    class Full(Batches):
        def epoch(self, epoch: int) -> Iterator[Any]:
            raise MemoryError

    with pytest.raises(DeviceError, match="not even its first batch could be made"):
        fit(Limited(16, 16), OneHot(), Full(blobs(), 16), recipe)
    with pytest.raises(RuntimeError, match="of another kind"):
        fit(
            Limited(1, 1, lambda: RuntimeError("of another kind")),
            OneHot(), Batches(blobs(), 16), recipe,
        )  # fmt: skip
    with pytest.raises(DistillensError, match="cumsum_cuda_kernel has no deterministic"):
        fit(
            Limited(1, 1, lambda: RuntimeError(NOT_DETERMINISTIC)),
            OneHot(), Batches(blobs(), 16), recipe,
        )  # fmt: skip


def test_steps_are_halved_until_one_fits() -> None:
    def step(count: int) -> None:
        if count > 20:
            raise MemoryError

    assert largest_step(step, 128) == 16
    assert largest_step(step, 20) == 20
    assert largest_step(lambda count: step(99), 128) is None


def test_predictions_take_as_many_examples_as_fit() -> None:
    examples = blobs(300)
    whole, part = Limited(300, 10**6), Limited(0, 70)
    expected = predict(whole, examples, None)
    assert whole.tried == [300]
    np.testing.assert_allclose(predict(part, examples, None), expected, rtol=1e-5, atol=1e-6)
    assert part.tried == [300, 150, 75, *[37] * 8, 4]
    with pytest.raises(DeviceError, match=r"logits of one example of 5: the GPU has 79\.10 GiB"):
        predict(Limited(0, 0), examples, None)
    lacking = Limited(0, 0, lambda: RuntimeError(NOT_DETERMINISTIC))
    with pytest.raises(DeviceError, match="leave deterministic out"):
        predict(lacking, examples, None)


def test_the_cost_of_a_batch_that_fits_is_measured() -> None:
    found = measure_cost(Limited(0, 20), (5,), device="cpu", batch=64, runs=2)
    assert found.batch == 16
    with pytest.raises(DeviceError, match="memory ran out on one example of the model"):
        measure_cost(Limited(0, 0), (5,), device="cpu", runs=2)


@pytest.mark.parametrize("kind", ERRORS)
def test_a_gram_that_is_too_large_is_told_with_what_fits(kind: str) -> None:
    model = Limited(2, 2, ERRORS[kind]).eval()
    inputs = blobs(20).inputs
    with pytest.raises(KernelError, match=r"memory ran out on gram of 20 examples.*max_memory=\d+"):
        EmpiricalNTK(model, outputs=0, _limits=Limits(jacobians=False)).gram(inputs)
    model = Limited(0, 0, ERRORS[kind]).eval()
    with pytest.raises(KernelError, match=r"oracle_gram of 20 examples.*give fewer examples"):
        oracle_gram(model, inputs, outputs=0)


def test_the_command_line_says_it_in_one_line(
    tiny: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(yaml.safe_dump(tiny))
    forward, most = nn.Linear.forward, {True: 20, False: 90}

    def limited(self: nn.Linear, inputs: Tensor) -> Tensor:
        if len(inputs) > most[torch.is_grad_enabled()]:
            raise torch.OutOfMemoryError(FULL)
        return forward(self, inputs)

    monkeypatch.setattr(nn.Linear, "forward", limited)
    line = refused(capsys, "run", recipe, "--out", out)
    assert "teacher (mlp): the GPU has 79.10 GiB" in line
    assert "set training.accumulate=2" in line
    halves = [f"{part}.training.accumulate=2" for part in ("teacher", "student")]
    line = refused(capsys, "run", recipe, *halves, "--out", out)
    # The teacher was trained and tested on parts of the examples.
    assert (out / "teacher" / "cell.json").is_file()
    assert "the logits of a teacher on the training examples: the GPU has 79.10 GiB" in line
    monkeypatch.setattr("distillens.study.run_recipe.run", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        command("run", recipe, "--out", tmp_path / "other")

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError(FULL)

    monkeypatch.setattr("distillens.study.run_recipe.run", full)
    assert "memory ran out on this command" in refused(capsys, "run", recipe, "--out", out)


def test_a_worker_takes_its_share_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[float] = []
    properties = type("Properties", (), {"total_memory": 10 * 10**9})()
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, device: limits.append(share)
    )
    device = torch.device("cuda:0")
    limit_memory(device, 1)
    assert not limits
    limit_memory(device, 4)
    # All tensors of four processes, and what each takes beside them, fit.
    assert 4 * (limits[0] * 10 * 10**9 + 6 * 10**8) == pytest.approx(10 * 10**9)
    with pytest.raises(DeviceError, match=r"20 workers do not fit on a GPU of 9\.3 GiB"):
        limit_memory(device, 20)


def test_only_memory_that_ran_out_counts() -> None:
    assert all(ran_out_of_memory(make()) for make in ERRORS.values())
    assert not ran_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not ran_out_of_memory(ValueError("out of memory"))
