"""The training step of a plain PyTorch loop: what a step of distillens is compared with on a GPU.

A batch lies on the device, the forward pass runs under bfloat16 autocast, and the whole step is replayed
as one CUDA graph, as PyTorch's documentation of CUDA graphs describes it. On a CPU the same step runs
eagerly.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

WARM_UP = 5


class PlainStep:
    """One network, its optimizer and a fixed batch."""

    def __init__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> None:
        self.model = model.to(inputs.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.inputs = inputs.contiguous(memory_format=torch.channels_last)
        self.labels = labels
        self.optimizer = torch.optim.SGD(
            model.parameters(), lr=1e-3, momentum=0.9, nesterov=True, weight_decay=2e-4, fused=True
        )
        cuda = inputs.device.type == "cuda"
        self._stream = torch.cuda.Stream() if cuda else None
        self._graph: Any = None
        if self._stream is not None:
            self._capture(self._stream)

    def _capture(self, stream: Any) -> None:
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._body()
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=stream):
            self._body()

    def _body(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.inputs.device.type, torch.bfloat16):
            logits = self.model(self.inputs)
        cross_entropy(logits.float(), self.labels).backward()
        self.optimizer.step()

    def __call__(self) -> None:
        """Take a step."""
        if self._graph is None:
            self._body()
            return
        with torch.cuda.stream(self._stream):
            self._graph.replay()


def milliseconds(steps: Sequence[Callable[[], object]], count: int, device: torch.device) -> float:
    """Return the time of one round of steps, each of which may run on a stream of its own."""
    for _ in range(WARM_UP):
        for step in steps:
            step()
    synchronise(device)
    began = time.perf_counter()
    for _ in range(count):
        for step in steps:
            step()
    synchronise(device)
    return (time.perf_counter() - began) / count * 1000


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ceilings(device: torch.device, size: int) -> tuple[float, float]:
    """Return measured rates: bfloat16 operations a second, and bytes a second of a large copy."""
    left, right = (torch.randn(size, size, device=device).to(torch.bfloat16) for _ in "ab")
    product = milliseconds([lambda: torch.mm(left, right)], 10, device) / 1000
    source = torch.randn(size * size * 4, device=device)
    target = torch.empty_like(source)
    copied = milliseconds([lambda: target.copy_(source)], 10, device) / 1000
    return 2 * size**3 / product, 2 * source.numel() * source.element_size() / copied


def bound_milliseconds(
    model: nn.Module,
    batch: int,
    shape: tuple[int, ...],
    multiply_adds: int,
    rates: tuple[float, float],
) -> dict[str, float]:
    """Return what bounds a step from below: the time of its arithmetic, and of its memory traffic.

    Arithmetic: three products for each multiply-add of the forward pass. Traffic: weights, gradients and
    momentum in float32 are read and written once, and so are the outputs of layers and their gradients
    in bfloat16.
    """
    outputs = 0

    def count(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal outputs
        if isinstance(output, Tensor):
            outputs += output.numel()

    device = next(model.parameters()).device
    leaves = [module for module in model.modules() if not list(module.children())]
    hooks = [module.register_forward_hook(count) for module in leaves]
    with torch.no_grad():
        model(torch.zeros(batch, *shape, device=device))
    for hook in hooks:
        hook.remove()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    traffic = 6 * 4 * parameters + 4 * 2 * outputs
    operations, bandwidth = rates
    return {
        "arithmetic_ms": 6 * multiply_adds * batch / operations * 1000,
        "traffic_ms": traffic / bandwidth * 1000,
    }
