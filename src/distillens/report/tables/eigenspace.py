"""Eigenspace dynamics for the terminal: the share of pairs with a stronger bias."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from distillens.report.tables.text import estimate, fixed, plural, printable
from distillens.results.eigenspace import BiasSummary, Eigenspace

PROJECTED = {"weights": "W", "change": "W − W₀"}


def eigenspace_table(result: Eigenspace) -> Table:
    """Return one row a supervision and projection: how many pairs have a stronger bias."""
    table = Table(
        title=f"{printable(result.layer)}, eigenvectors of {result.examples:,} {result.split} inputs",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("student")
    for name in ("of", "stronger", "not", "open", "share %", "at the end %", "majority %"):
        table.add_column(name, justify="right", no_wrap=name == "of")
    for summary in result.summaries:
        table.add_row(
            Text(printable(summary.student)),
            PROJECTED[summary.projected],
            _mean(summary, summary.stronger),
            _mean(summary, summary.not_stronger),
            _mean(summary, summary.undecided),
            estimate(summary.share, 0, 100),
            estimate(summary.share_at_end, 0, 100),
            estimate(summary.majority, 0, 100),
        )
    first = result.summaries[0]
    words = [
        "Stronger: less of the bottom eigenvector than the teacher at equal components along the "
        f"top one. Of {plural(first.pairs, 'pair')} a student (pair seed {result.pair_seed}), mean "
        f"over {plural(first.students, 'student')} of {plural(first.teachers, 'teacher')}; open: "
        "undecided.",
        *_methods(result.summaries),
        *map(printable, result.notes),
    ]
    table.caption = Text("\n".join(words))
    return table


def _mean(summary: BiasSummary, total: int) -> str:
    return fixed(total / summary.students, 1)


def _methods(summaries: Sequence[BiasSummary]) -> list[str]:
    """Return how intervals were made; students without a decided pair have none."""
    found: list[str] = []
    for summary in summaries:
        for name, interval in (
            ("Share", summary.share.interval),
            ("Majority (more than half of the pairs)", summary.majority.interval),
        ):
            if interval is not None:
                found.append(f"{name}: {interval.method}.")
    return list(dict.fromkeys(found))
