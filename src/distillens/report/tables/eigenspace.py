"""Eigenspace dynamics for the terminal: the share of pairs with a stronger bias."""

from __future__ import annotations

from rich.table import Table

from distillens.report.tables.grid import grid_of, terminal_table
from distillens.report.tables.text import estimate, fixed, plural, printable
from distillens.results.eigenspace import Eigenspace

PROJECTED = {"weights": "W", "change": "W − W₀"}


def eigenspace_table(result: Eigenspace) -> Table:
    """Return one row a supervision and projection: how many pairs have a stronger bias."""
    first = result.summaries[0]
    words = [
        "Stronger: less of the bottom eigenvector than the teacher at equal components along the "
        f"top one. Of {plural(first.pairs, 'pair')} a student (pair seed {result.pair_seed}), mean "
        f"over {plural(first.students, 'student')} of {plural(first.teachers, 'teacher')}; open: "
        "undecided.",
    ]
    # Students without a decided pair have no intervals.
    for one in result.summaries:
        shares = {"Share": one.share, "Majority (more than half of the pairs)": one.majority}
        words += [f"{n}: {e.interval.method}." for n, e in shares.items() if e.interval is not None]
    grid = grid_of(
        zip(result.summaries),
        {
            "student": lambda one: one.student,
            "of": lambda one: PROJECTED[one.projected],
            "stronger": lambda one: fixed(one.stronger / one.students, 1),
            "not": lambda one: fixed(one.not_stronger / one.students, 1),
            "open": lambda one: fixed(one.undecided / one.students, 1),
            "share %": lambda one: estimate(one.share, 0, 100),
            "at the end %": lambda one: estimate(one.share_at_end, 0, 100),
            "majority %": lambda one: estimate(one.majority, 0, 100),
        },
    )
    table = terminal_table(
        grid,
        title=f"{result.layer}, eigenvectors of {result.examples:,} {result.split} inputs",
        caption="\n".join([*dict.fromkeys(words), *map(printable, result.notes)]),
    )
    table.columns[1].no_wrap = True
    return table
