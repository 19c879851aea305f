"""What a Gram will take: time, memory, tiles. Made before any of it is computed.

Shapes: N examples along the rows, M along the columns, C outputs.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import Tensor

from distillens.errors import KernelError
from distillens.kernel.blocks import BlockMaker
from distillens.kernel.ways import Speed

_MOST_ROWS = 256
"""Of a tile: larger ones make matrix products no faster."""
_TILES = 4
"""Tiles along a side at least: what is computed of the lower triangle is half a tile a row."""
_FORWARD_NUMBERS = 2**25
"""Activations that a forward and backward pass holds at a time; more leaves the caches sooner."""


@dataclass(frozen=True)
class Layer:
    """How the gradients of one use are contracted."""

    parameters: tuple[str, ...]
    way: str
    held: int
    """Numbers of an example that are kept."""


@dataclass(frozen=True)
class Plan:
    """How a Gram will be computed."""

    rows: int
    columns: int
    panel: int
    """Rows whose gradients are kept together while the columns pass by."""
    tile: int
    """Columns that pass by together."""
    forward: int
    """Examples of a forward and backward pass."""
    memory: int
    """Bytes that it will take beside the inputs and the network, the Gram included."""
    seconds: float
    """A rough time, from the speed of matrix products as measured here."""
    layers: tuple[Layer, ...]

    def __str__(self) -> str:
        lines = [
            f"{self.rows} x {self.columns} examples, panels of {self.panel}, tiles of {self.tile}, "
            f"{self.forward} a forward pass",
            f"about {self.seconds:.3g} s, {self.memory / 2**20:.0f} MiB",
        ]
        lines += [
            f"  {' '.join(layer.parameters)}: {layer.way}, {layer.held} numbers an example"
            for layer in self.layers
        ]
        return "\n".join(lines)


def activation_bytes(maker: BlockMaker, sample: Tensor) -> int:
    """Return what autograd keeps of one example, and as much again for what passes by."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        one = maker.trace(sample[:1])
    del one
    weights = {tensor.data_ptr() for tensor in maker.parameters}
    return 2 * sum(size for place, size in kept.items() if place not in weights)


def forward_size(maker: BlockMaker, sample: Tensor, budget: int) -> int:
    """Return how many examples go through the network at a time."""
    passing = max(1, activation_bytes(maker, sample))
    return max(1, min(_FORWARD_NUMBERS * maker.item_size, budget) // passing)


def make_plan(
    maker: BlockMaker,
    sample: Tensor,
    rows: int,
    columns: int | None,
    gram_bytes: int,
    budget: int,
    speed: Speed,
    shares: int,
) -> Plan:
    """Return the plan of a Gram that fits a budget.

    Parameters
    ----------
    maker, sample
        Of the network, and an example.
    rows, columns
        N and M; None where the columns are the rows.
    gram_bytes
        What the result takes in memory.
    budget
        Bytes to stay inside.
    speed
        Of this machine.
    shares
        Processes that share the panels.

    Raises
    ------
    KernelError
        The budget is too small for panels and tiles of one example.
    """
    item = maker.item_size
    held = maker.held * item
    passing = activation_bytes(maker, sample)
    across = rows if columns is None else columns
    # A row and a column of gradients, one pass, and the tile.
    least = gram_bytes + 2 * held + passing + item
    if least > budget:
        raise KernelError(
            f"a Gram of {gram_bytes / 2**20:.4g} MiB and gradients of {held / 2**20:.4g} MiB an "
            f"example{_most(maker)} do not fit max_memory = {budget / 2**20:.4g} MiB; at least "
            f"{least / 2**20:.4g} MiB are needed"
        )
    free = budget - gram_bytes
    tile = max(1, min(_MOST_ROWS, -(-across // _TILES), free // (4 * (held + 1))))
    forward = min(tile, forward_size(maker, sample, free // 4))
    panel = (free - tile * held - forward * passing) // (held + 1)
    panel = max(1, min(panel, rows))
    if shares > 1:
        # Each process gets a panel from the top and one from the bottom of the triangle.
        panel = min(panel, -(-rows // (2 * shares)))
    if panel > tile:
        panel -= panel % tile if panel < rows else 0
    pairs = rows * across / (2 if columns is None else 1)
    streamed = sum(
        across - (start if columns is None else 0) for start in range(0, rows, panel)
    ) + (rows if columns is not None else 0)
    work = sum(speed.seconds(part.choice.cost, streamed, pairs) for part in maker.parts)
    # Forward and backward: about as many multiply-adds as it takes to form the gradients twice.
    passes = 2 * sum(part.choice.cost.example_products for part in maker.parts) * streamed
    return Plan(
        rows=rows,
        columns=across,
        panel=panel,
        tile=tile,
        forward=forward,
        memory=int(gram_bytes + (panel + tile) * held + forward * passing),
        seconds=(work + passes / speed.small_products) / shares,
        layers=tuple(
            Layer(tuple(part.place.names.values()), part.choice.way, int(part.choice.cost.held))
            for part in maker.parts
        ),
    )


def _most(maker: BlockMaker) -> str:
    """Return what takes most of an example's gradients, if anything does."""
    parts = [part for part in maker.parts if 2 * part.choice.cost.held > maker.held]
    if not parts:
        return ""
    return f" (most of it by {' and '.join(parts[0].place.names.values())})"


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free on a device now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
