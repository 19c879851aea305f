"""Laws of a Gram: symmetry, order, cuts; what it keeps on disk; what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ntk_cases import FORMS, RULES, SLOW_TO_MOVE, images, rules_ntk
from torch import Tensor, nn

from distillens.errors import KernelError
from distillens.kernel import EmpiricalNTK
from distillens.kernel.assembly.tiles import GramValues
from distillens.kernel.factors.outer_products import OuterProducts
from distillens.kernel.tracing.directions import Outputs
from distillens.kernel.tracing.memory import LiveBytes

SMALL_TILES = replace(RULES, tile_rows=2, seconds_between_marks=0.0)
"""Tiles of two examples, each of which is recorded when it is done."""
UNRESERVED = replace(RULES, reserve_setup=False)
"""Plans leave out the memory of tracing and checking, which takes most for so small networks."""


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, stride=2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(36, 3),
    ).eval()


def examples(count: int = 13, seed: int = 0) -> Tensor:
    return images(count, seed=seed)


def scaled(gram: Tensor) -> Tensor:
    """Return a Gram whose largest entry is 1."""
    return gram / gram.abs().max()


def least(kernel: EmpiricalNTK, *inputs: Tensor) -> int:
    """Return the bytes that the message of a bound too small names."""
    kernel._max_memory = 1
    with pytest.raises(KernelError, match="max_memory = 1 bytes is too small") as caught:
        kernel.plan(*inputs)
    return int(str(caught.value).split("give at least ")[1].split()[0])


def cut(kernel: EmpiricalNTK, inputs: Tensor, extra: float) -> tuple[Tensor, Any]:
    """Return a Gram in little room, and its plan."""
    smallest = least(kernel, inputs)
    kernel._max_memory = int(smallest * extra)
    found = kernel.gram(inputs)
    return found.values, found.plan


def as_blocks(values: Tensor, outputs: Outputs) -> Tensor:
    """Return (…, N, M), the outputs' axes in front."""
    if outputs != "full":
        return values
    return values.unflatten(1, (-1, 3)).unflatten(0, (-1, 3)).permute(1, 3, 0, 2)


@pytest.mark.parametrize("outputs", FORMS)
def test_a_gram_is_symmetric_and_positive_semidefinite(outputs: Outputs) -> None:
    values = rules_ntk(network(), outputs=outputs).gram(examples()).values
    assert torch.equal(values, values.mT)
    eigenvalues = torch.linalg.eigvalsh(values.double())
    assert eigenvalues.min() >= -1e-6 * eigenvalues.max()


@pytest.mark.parametrize("outputs", FORMS)
def test_the_order_of_examples_changes_rounding_only(outputs: Outputs) -> None:
    kernel, inputs = rules_ntk(network(), outputs=outputs), examples()
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(1))
    plain = as_blocks(kernel.gram(inputs).values, outputs)
    shuffled = as_blocks(kernel.gram(inputs[order]).values, outputs)
    wanted = plain[..., order, :][..., :, order]
    torch.testing.assert_close(scaled(shuffled), scaled(wanted), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("outputs", FORMS)
def test_sizes_of_tiles_change_rounding_only(outputs: Outputs) -> None:
    kernel, inputs = rules_ntk(network(), UNRESERVED, outputs=outputs), examples()
    roomy = kernel.gram(inputs)
    seen = set()
    for extra in (1.0, 1.3, 2.0):
        values, plan = cut(kernel, inputs, extra)
        seen.add(plan.sizes)
        assert plan.memory <= plan.budget
        assert torch.equal(values, values.mT)
        torch.testing.assert_close(scaled(values), scaled(roomy.values), rtol=2e-5, atol=2e-6)
    assert len(seen | {roomy.plan.sizes}) >= 3
    if outputs in ("class-diagonal", "trace"):
        assert min(sizes.outputs for sizes in seen) < 3


@pytest.mark.parametrize("pieces", [1, 3, 16])
@pytest.mark.parametrize("outputs", FORMS)
def test_pieces_of_the_parameters_and_strips_change_rounding_only(
    outputs: Outputs, pieces: int
) -> None:
    inputs = examples()
    whole = rules_ntk(network(), outputs=outputs).gram(inputs).values
    # 299 parameters: several batches of pieces, one that is not full, and a rest.
    limits = replace(RULES, piece=7, pieces=pieces, strip=5)
    cut_up = rules_ntk(network(), limits, outputs=outputs).gram(inputs).values
    torch.testing.assert_close(scaled(cut_up), scaled(whole), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("outputs", FORMS)
def test_a_gram_of_two_sets_is_a_part_of_that_of_their_union(outputs: Outputs) -> None:
    kernel = rules_ntk(network(), outputs=outputs)
    left, right = examples(7), examples(5, seed=9)
    whole = as_blocks(kernel.gram(torch.cat([left, right])).values, outputs)
    crossed = as_blocks(kernel.gram(left, right).values, outputs)
    size = whole.abs().max()
    torch.testing.assert_close(crossed / size, whole[..., :7, 7:] / size, rtol=2e-5, atol=2e-6)
    turned = as_blocks(kernel.gram(right, left).values, outputs)
    if outputs == "full":
        turned = turned.transpose(0, 1)
    torch.testing.assert_close(turned.mT / size, crossed / size, rtol=2e-5, atol=2e-6)


def test_one_example_has_a_gram() -> None:
    kernel = rules_ntk(network(), outputs=0)
    found = kernel.gram(examples(1)).values
    assert found.shape == (1, 1)
    torch.testing.assert_close(found[0], kernel.diagonal(examples(1)))


class Cut(nn.Module):
    """A network whose third output knows nothing of its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self.inner(inputs)
        return torch.cat([outputs[:, :2], outputs[:, 2:].detach()], dim=1)


@pytest.mark.parametrize(
    ("outputs", "zero"),
    [(0, False), (2, True), ((2, 0), False), ("class-diagonal", False), ("full", False)],
)
def test_a_kernel_that_is_zero_says_so(outputs: Outputs, zero: bool) -> None:
    found = rules_ntk(Cut(), outputs=outputs).gram(examples())
    assert any("the kernel is zero" in note for note in found.notes) == zero
    assert bool(found.values.any()) != zero


@pytest.mark.parametrize("count", [2, 4, 10])
@pytest.mark.parametrize("outputs", FORMS)
def test_a_kernel_that_is_constant_is_not_called_zero(outputs: Outputs, count: int) -> None:
    # That of a bias: half of the signs that the check sums up with may cancel the others.
    model = nn.Linear(5, 3)
    found = rules_ntk(model, outputs=outputs, parameters=["bias"]).gram(torch.randn(count, 5))
    assert found.values.any()
    assert found.notes == ()


def test_one_live_logit_of_many_is_enough() -> None:
    class One(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            outputs = super().forward(input)
            return torch.cat([outputs.detach()[:, :9], outputs[:, 9:]], dim=1)

    found = rules_ntk(One(5, 10), outputs="class-diagonal").gram(torch.randn(6, 5))
    assert found.values[9].any()
    assert found.notes == ()


def test_the_least_bound_that_is_named_does() -> None:
    for outputs in ("class-diagonal", "full"):
        kernel = rules_ntk(network(), outputs=outputs)
        smallest = least(kernel, examples())
        kernel._max_memory = smallest
        assert kernel.gram(examples()).plan.memory <= smallest
        kernel._max_memory = smallest - 1
        with pytest.raises(KernelError, match=f"give at least {smallest} bytes"):
            kernel.gram(examples())


@pytest.mark.parametrize("outputs", [0, "trace", "full"])
@pytest.mark.parametrize("extra", [1.0, 1.5, 4.0])
def test_no_more_tensors_are_held_than_planned(outputs: Outputs, extra: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 40), nn.ReLU(), nn.Linear(40, 3)
    )
    kernel, inputs = rules_ntk(model, outputs=outputs), examples(40)
    kernel._max_memory = int(extra * least(kernel, inputs))
    with LiveBytes() as live:
        plan = kernel.gram(inputs).plan
    assert live.peak <= plan.memory + 8192  # indices and a few numbers of each layer
    assert plan.memory <= kernel._max_memory


@pytest.mark.parametrize("at_once", [0, 512])
def test_what_is_kept_of_many_positions_is_planned(at_once: int) -> None:
    # Passes of one example take little, so that kept and materialised gradients take all memory.
    limits = replace(UNRESERVED, pass_numbers=1, single_tile_examples=at_once, speed=SLOW_TO_MOVE)
    torch.manual_seed(0)
    layers = nn.Flatten(1, 2), nn.Linear(8, 96), nn.Tanh(), nn.Linear(96, 96), nn.Tanh()
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(768, 1)).eval()
    inputs = examples(120)
    kernel = rules_ntk(model, limits, outputs=0)
    kernel._max_memory = 2**40 if at_once else 4 * 60 * 9216
    with LiveBytes() as live:
        found = kernel.gram(inputs).plan
    assert found.sizes.panel == 120 if at_once else found.sizes.panel < 120
    assert ("streamed" in {layer.strategy for layer in found.layers}) == bool(at_once)
    assert live.peak <= found.memory + 8192  # indices and a few numbers of each layer


@pytest.mark.parametrize("outputs", [0, "class-diagonal"])
@pytest.mark.parametrize("extra", [1.0, 2.0, 8.0])
def test_the_diagonal_of_factored_positions_stays_inside_the_bound(
    outputs: Outputs, extra: float
) -> None:
    torch.manual_seed(0)
    # Four positions of many channels: materialised they would take far more than in pairs.
    model = nn.Sequential(nn.Conv2d(1, 32, 4, stride=2), nn.ReLU(), nn.Conv2d(32, 48, 2))
    model = nn.Sequential(*model, nn.Tanh(), nn.Flatten(), nn.Linear(192, 3)).eval()
    inputs = examples(40)
    kernel = rules_ntk(model, outputs=outputs)
    wanted = kernel.gram(inputs).values.diagonal(dim1=-2, dim2=-1)
    uses = rules_ntk(model, outputs=0).product(inputs)._made(0).factored
    assert any(isinstance(use, OuterProducts) and use.positions > 1 for use in uses)
    kernel._max_memory = 1
    with pytest.raises(KernelError, match="too small for the gradients of one example") as caught:
        kernel.diagonal(inputs)
    smallest = int(str(caught.value).split("give at least ")[1].split()[0])
    kernel._max_memory = int(extra * smallest)
    with LiveBytes() as live:
        found = kernel.diagonal(inputs)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert live.peak <= kernel._max_memory + 8192  # indices and a few numbers of each layer
    kernel._max_memory = smallest - 1
    with pytest.raises(KernelError, match=f"give at least {smallest} bytes"):
        kernel.diagonal(inputs)


@pytest.mark.parametrize(
    ("inputs", "other", "line"),
    [
        (torch.zeros(0, 1, 8, 8), None, "at least one example"),
        (examples(), torch.zeros(0, 1, 8, 8), "other inputs have shape"),
        (examples(), torch.zeros(3, 1, 9, 9), "do not fit; examples must have one shape"),
        (examples() / 0, None, "inputs hold NaN or infinity"),
        (torch.tensor(1.0), None, r"inputs have shape \(\)"),
    ],
)
def test_inputs_that_cannot_be_have_one_line(
    inputs: Tensor, other: Tensor | None, line: str
) -> None:
    with pytest.raises(KernelError, match=line) as caught:
        rules_ntk(network(), outputs=0).gram(inputs, other)
    assert "\n" not in str(caught.value)


def test_models_that_have_no_kernel_have_one_line() -> None:
    broken = network()
    with torch.no_grad():
        next(broken.parameters())[0] = torch.nan
    with pytest.raises(KernelError, match=r"0\.weight holds NaN or infinity"):
        rules_ntk(broken, outputs=0)
    pictures = nn.Sequential(nn.Conv2d(1, 2, 3))
    with pytest.raises(KernelError, match=r"the model returns \(1, 2, 6, 6\)"):
        rules_ntk(pictures, outputs=0).gram(examples())

    class Root(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return inputs.sqrt()

    steep = nn.Sequential(nn.Flatten(), nn.Linear(64, 2, bias=False), Root())
    with torch.no_grad():
        next(steep.parameters()).fill_(1.0)
    # The root has no derivative at the last example, which is none of those looked at beforehand.
    inputs = torch.cat([examples(), torch.zeros(1, 1, 8, 8)]).abs()
    with pytest.raises(KernelError, match="the Gram is not finite"):
        rules_ntk(steep, outputs=0).gram(inputs)


class KilledError(Exception):
    """Stands for a kill."""


def kill_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    put = GramValues.put

    def mortal(self: GramValues, *args: Any, **kwargs: Any) -> None:
        nonlocal count
        count -= 1
        if count < 0:
            raise KilledError
        put(self, *args, **kwargs)

    monkeypatch.setattr(GramValues, "put", mortal)


@pytest.mark.parametrize("outputs", [0, "class-diagonal", "trace", "full"])
def test_a_killed_gram_goes_on_with_the_same_bits(
    outputs: Outputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = examples()
    limits = replace(UNRESERVED, seconds_between_marks=0.0)
    kernel = rules_ntk(network(), limits, outputs=outputs)
    kernel._max_memory = 1
    with pytest.raises(KernelError) as caught:
        kernel.gram(inputs, store=tmp_path / "none")
    kernel._max_memory = int(str(caught.value).split("give at least ")[1].split()[0]) * 6 // 5
    # All with the sizes of the first start: its folder without a tile.
    with monkeypatch.context() as killed:
        kill_after(0, killed)
        with pytest.raises(KilledError):
            kernel.gram(inputs, store=tmp_path / "start")
    shutil.copytree(tmp_path / "start", tmp_path / "whole")
    whole = kernel.gram(inputs, store=tmp_path / "whole")
    assert whole.plan.gram_bytes == 0
    assert whole.plan.sizes.panel < len(inputs)
    for tiles in (7, 20):
        folder = tmp_path / str(tiles)
        shutil.copytree(tmp_path / "start", folder)
        with monkeypatch.context() as killed:
            kill_after(tiles, killed)
            with pytest.raises(KilledError):
                kernel.gram(inputs, store=folder)
        with monkeypatch.context() as counted:
            kill_after(10**6, counted)
            assert torch.equal(kernel.gram(inputs, store=folder).values, whole.values)
    in_memory = rules_ntk(network(), outputs=outputs).gram(inputs).values
    torch.testing.assert_close(scaled(whole.values), scaled(in_memory), rtol=2e-5, atol=2e-6)
    assert whole.values.shape == in_memory.shape
    with monkeypatch.context() as killed:
        # What is finished is read, and not computed.
        kill_after(0, killed)
        again = kernel.gram(inputs, store=tmp_path / "whole").values
        assert torch.equal(again, whole.values)
    again.zero_()
    assert torch.equal(kernel.gram(inputs, store=tmp_path / "whole").values, whole.values)


def test_a_killed_gram_does_not_start_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, inputs = rules_ntk(network(), SMALL_TILES, outputs=0), examples()
    with monkeypatch.context() as killed:
        kill_after(20, killed)
        with pytest.raises(KilledError):
            kernel.gram(inputs, store=tmp_path)
    with monkeypatch.context() as killed:
        # Seven tiles a side are 28 in the triangle. Those of the step that was cut are done again.
        kill_after(14, killed)
        kernel.gram(inputs, store=tmp_path)


_SLOW = """
import sys, time
from distillens.kernel.assembly.tiles import GramValues
from ntk_cases import rules_ntk
import test_gram as here

put = GramValues.put

def slow(self, *args, **kwargs):
    put(self, *args, **kwargs)
    time.sleep(0.1)

GramValues.put = slow
kernel = rules_ntk(here.network(), here.SMALL_TILES, outputs="class-diagonal")
kernel.gram(here.examples(), store=sys.argv[1])
"""


def test_a_process_that_was_killed_for_real_goes_on_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, whole = tmp_path / "killed", tmp_path / "whole"
    child = subprocess.Popen(
        [sys.executable, "-c", _SLOW, str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
    )
    try:
        # Panels are done from the first on: some tiles are there, and most are not.
        while child.poll() is None and not tiles_done(folder) >= 5:
            time.sleep(0.02)
        assert child.poll() is None
    finally:
        child.kill()
        child.wait()
    done = tiles_done(folder)
    assert 5 <= done < 28
    # The same plan from the start, without a tile.
    whole.mkdir()
    shutil.copy(folder / "gram.json", whole)
    inputs = examples()
    kernel = rules_ntk(network(), SMALL_TILES, outputs="class-diagonal")
    wanted = kernel.gram(inputs, store=whole).values
    put = GramValues.put
    count = 0

    def counted(self: GramValues, *args: Any, **kwargs: Any) -> None:
        nonlocal count
        count += 1
        put(self, *args, **kwargs)

    monkeypatch.setattr(GramValues, "put", counted)
    assert torch.equal(kernel.gram(inputs, store=folder).values, wanted)
    # Seven tiles a side are 28 in the triangle.
    assert 0 < count <= 28 - done


def tiles_done(folder: Path) -> int:
    """Return how many steps the marks of a store count."""
    if not (folder / "done-0.json").exists():
        return 0
    return sum(json.loads((folder / "done-0.json").read_text()).values())


def test_a_store_of_another_gram_is_refused(tmp_path: Path) -> None:
    inputs, model = examples(4), network()
    rules_ntk(model, outputs=0).gram(inputs, store=tmp_path)

    def refused(line: str, inputs: Tensor = inputs, **changed: Any) -> None:
        kernel = rules_ntk(changed.pop("model", model), **{"outputs": 0, **changed})
        with pytest.raises(KernelError, match=line) as caught:
            kernel.gram(inputs, store=tmp_path)
        assert "\n" not in str(caught.value)

    refused("a Gram of other inputs: there ", inputs=inputs + 1)
    refused(r"other inputs' shape: there \[4, 1, 8, 8\], here \[3, 1, 8, 8\]", inputs=inputs[:3])
    refused("other outputs: there 0, here 1", outputs=1)
    refused("other dtype: there torch.float32, here torch.float64", dtype=torch.float64)
    refused(r'other parameters: .* here \["5.bias"\]', parameters=["5.bias"])
    moved = network()
    with torch.no_grad():
        next(moved.parameters()).add_(1e-3)
    refused("other weights", model=moved)
    (tmp_path / "gram.npy").write_bytes(b"x")
    refused("cannot open .*gram.npy")
    (tmp_path / "gram.npy").unlink()
    refused("gram.npy is missing although tiles of it were done")
    (tmp_path / "gram.json").write_text("{")
    refused("cannot read .*gram.json")
    (tmp_path / "gram.json").write_text(json.dumps({"schema": 0}))
    refused("has schema 0")
    (tmp_path / "gram.json").unlink()
    (tmp_path / "gram.npy").write_bytes(b"x")
    refused("no gram.json that describes it")


def test_a_plan_can_be_read() -> None:
    plan = rules_ntk(network(), outputs="full", max_memory=2**24).plan(examples())
    text = str(plan)
    for part in ("13 x 13 examples", "time ", "of 16 MiB", "panels of", "numbers an example"):
        assert part in text
    assert max(len(line) for line in text.splitlines()) <= 100
