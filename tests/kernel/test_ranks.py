"""Two processes give the Gram that one gives, and an error of one ends both."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ntk_cases import images, small_network
from torch import distributed, nn
from torch.multiprocessing.spawn import spawn

from distillens.errors import KernelError
from distillens.kernel import EmpiricalNTK
from distillens.kernel.assembly.ranks import Ranks
from distillens.kernel.assembly.tiles import GramValues
from distillens.kernel.tracing.directions import Outputs

FORMS: tuple[Outputs, ...] = (0, "class-diagonal", "trace", "full")


def network() -> nn.Module:
    return small_network(seed=3)


def examples(count: int) -> torch.Tensor:
    return images(count, seed=count)


def products() -> dict[str, torch.Tensor]:
    """Return what products with the kernel give, of gradients that are kept and that are not."""
    found = {}
    generator = torch.Generator().manual_seed(7)
    forms: tuple[tuple[Outputs, int], ...] = ((0, 1), ("full", 3))
    for outputs, each in forms:
        for count, memory in ((13, None), (301, 140_000)):
            kernel = EmpiricalNTK(network(), outputs=outputs, max_memory=memory)
            product = kernel.product(examples(count))
            assert product.kept == (memory is None)
            vectors = torch.randn(count * each, 2, generator=generator)
            found[f"{outputs} {memory}"] = product(vectors)
            found[f"{outputs} {memory} one"] = product(vectors[:, 0])
            found[f"{outputs} {memory} columns"] = product.columns(torch.tensor([1, 12]))
            found[f"{outputs} {memory} diagonal"] = product.diagonal()
    kernel = EmpiricalNTK(network(), outputs="class-diagonal")
    found["each"] = kernel.matvec(examples(13), torch.randn(3, 13, generator=generator))
    found["each diagonal"] = kernel.diagonal(examples(13))
    # Fewer examples than processes: one has nothing to do.
    found["alone"] = EmpiricalNTK(network(), outputs=0).matvec(examples(1), torch.ones(1))
    return found


def failing(self: GramValues, *args: object, **kwargs: object) -> None:
    raise KernelError("no tile today")


def work(rank: int, folder: str) -> None:
    """Compute in one of two processes; write down what it got."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    found: dict[str, object] = {}
    for outputs in FORMS:
        found[str(outputs)] = EmpiricalNTK(network(), outputs=outputs).gram(examples(13)).values
    kernel = EmpiricalNTK(network(), outputs=0)
    result = kernel.gram(examples(13), examples(4))
    found["crossed"], found["shares"] = result.values, result.plan.shares
    found["stored"] = kernel.gram(examples(13), store=f"{folder}/store").values
    found |= {f"products {name}": value for name, value in products().items()}
    lines = []
    for case in range(3):
        inputs = examples(13)
        put = GramValues.put
        if case == 0:
            inputs = inputs + rank
        elif case == 1 and rank == 1:
            GramValues.put = failing
        else:
            kernel._max_memory = None if case == 1 else 1000 + rank
        try:
            kernel.gram(inputs)
        except KernelError as error:
            lines.append(str(error))
        GramValues.put = put
    kernel._max_memory = None
    try:
        kernel.product(examples(13) + rank)
    except KernelError as error:
        lines.append(str(error))
    kernel._max_memory = 1000 + rank
    try:
        kernel.diagonal(examples(13))
    except KernelError as error:
        lines.append(str(error))
    found["lines"] = lines
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    spawn(work, (str(tmp_path),), nprocs=2)
    zero, one = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for name, value in zero.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, one[name]), name
    assert zero["shares"] == 2
    for outputs in FORMS:
        alone = EmpiricalNTK(network(), outputs=outputs).gram(examples(13)).values
        torch.testing.assert_close(zero[str(outputs)], alone, rtol=2e-5, atol=2e-5)
        assert torch.equal(zero[str(outputs)], zero[str(outputs)].mT)
    kernel = EmpiricalNTK(network(), outputs=0)
    crossed = kernel.gram(examples(13), examples(4)).values
    torch.testing.assert_close(zero["crossed"], crossed, rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(zero["stored"], zero["0"])
    # What two began and finished, one can read.
    again = kernel.gram(examples(13), store=tmp_path / "store").values
    assert torch.equal(again, zero["stored"])
    for name, value in products().items():
        torch.testing.assert_close(zero[f"products {name}"], value, rtol=2e-5, atol=2e-5)
    assert all("process 1 has other inputs" in each["lines"][3] for each in (zero, one))
    assert all("too small for the gradients of one" in each["lines"][4] for each in (zero, one))
    assert "process 1 has other inputs" in zero["lines"][0]
    assert "process 1 has other inputs" in one["lines"][0]
    assert zero["lines"][1] == "process 1 stopped: no tile today"
    assert one["lines"][1] == "no tile today"
    assert all("max_memory = 1000 bytes is too small" in each["lines"][2] for each in (zero, one))


@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_triangle_is_shared_out_evenly(count: int) -> None:
    # Panels of the same height: the first has the whole width, the last only its own triangle.
    costs = [float(panel + 1) for panel in range(2 * count)][::-1]
    shares = [Ranks(rank, count).share(costs) for rank in range(count)]
    assert sorted(panel for share in shares for panel in share) == list(range(2 * count))
    loads = [sum(costs[panel] for panel in share) for share in shares]
    assert max(loads) == min(loads)
