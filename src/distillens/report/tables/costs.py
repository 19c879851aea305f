"""Inference cost of networks, for the terminal and for Markdown."""

from __future__ import annotations

from rich.table import Table

from distillens.report.tables.grid import Grid, terminal_table
from distillens.report.tables.text import count, printable
from distillens.results.training import NetworkCost, StudyResult

HEADINGS = ("network", "parameters", "multiply-adds", "file", "one example", "examples/s")


def cost_table(result: StudyResult) -> Table:
    """Return the costs as a table for the terminal."""
    rows = [cost_cells(row) for row in result.costs]
    return terminal_table(Grid([*HEADINGS], rows), caption=cost_caption(result))


def cost_cells(row: NetworkCost) -> list[str]:
    """Return the cells of a network in the order of ``HEADINGS``."""
    cost = row.cost
    return [
        f"{row.network} ({printable(row.model)})",
        count(cost.parameters),
        count(cost.multiply_adds),
        f"{cost.weights_bytes / 1e6:.2f} MB",
        f"{cost.latency_ms:.2f} ms",
        f"{1000 * cost.batch / cost.latency_batch_ms:,.0f}" if cost.latency_batch_ms > 0 else "–",
    ]


def cost_caption(result: StudyResult) -> str:
    """Return how the costs were measured."""
    cost = result.costs[-1].cost
    return (
        f"Multiply-adds of one example; size as safetensors; median of {cost.runs} forward passes in "
        f"float32 on {printable(cost.device)} with {cost.threads} thread(s), "
        f"examples/s in batches of {cost.batch}."
    )
