"""Properties of a Gram and of target sets on it, for the terminal and for the page."""

from __future__ import annotations

from rich.table import Table

from distillens.report.tables.grid import Grid, terminal_table
from distillens.report.tables.text import DASH, number, percent, printable
from distillens.results.complexity import GramProfile, RiskBound, TeacherKernel

_SHOWN = 4
"""Shares of energy that a row has room for."""


def profile_table(profile: GramProfile) -> Table:
    """Return one row a target set, with the Gram's own numbers below."""
    epoch = "" if profile.epoch is None else f" at epoch {profile.epoch}"
    grid = Grid([*profile_headings(profile)], profile_rows(profile))
    return terminal_table(grid, title=f"the Gram{epoch}", caption="\n".join(profile_lines(profile)))


def profile_headings(profile: GramProfile) -> tuple[str, ...]:
    """Return the headings of `profile_rows`; the ranks are those that the energies are shown at."""
    energy = [f"% in top {rank:,}" for rank in shown_ranks(profile)]
    return ("targets", "diagonal", "random", *energy, "risk at most")


def profile_rows(profile: GramProfile) -> list[list[str]]:
    """Return one list of cells a target set."""
    rows = []
    for row in profile.targets:
        shares = dict(zip(profile.ranks, row.energy, strict=False))
        energy = [percent(shares.get(rank), 1) for rank in shown_ranks(profile)]
        rows.append(
            [
                printable(row.name),
                number(row.diagonal),
                number(row.random),
                *energy,
                bound_words(row.bound),
            ]
        )
    return rows


def profile_lines(profile: GramProfile) -> list[str]:
    """Return the lines below the table: the spectrum, the meaning of the columns, the notes."""
    spectrum = (
        f"{profile.ranks[-1]:,} eigenvalues: condition {number(profile.condition)}, effective rank "
        f"{number(profile.effective_rank)}, stable rank {number(profile.stable_rank)}"
    )
    if profile.negative:
        spectrum += f", {profile.negative} below 0 by rounding"
    lines = [
        spectrum,
        "diagonal, random: adjusted* of a kernel that only memorises, and of random targets of that "
        "size",
    ]
    bounds = [row.bound for row in profile.targets if row.bound is not None]
    if bounds:
        lines.append(f"risk of the kernel's fit, with probability {1 - bounds[0].delta:g}")
    whose: dict[str, list[str]] = {}
    for row in profile.targets:
        for note in row.bound.notes if row.bound is not None else ():
            whose.setdefault(note, []).append(row.name)
    notes = [f"{', '.join(names)}: {note}" for note, names in whose.items()]
    return [*lines, *map(printable, [*notes, *profile.notes])]


def bound_words(bound: RiskBound | None) -> str:
    """Return a bound as text; one of 1 or more is called vacuous."""
    if bound is None:
        return DASH
    value = "vacuous" if bound.vacuous else f"{100 * bound.value:.1f} %"
    return f"{value} ({bound.theorem}, γ {number(bound.margin, 2)})"


def teacher_kernel_line(found: TeacherKernel) -> str:
    """Return how alike student's and teacher's kernels are, in a line."""
    error = "" if found.standard_error is None else f" ± {number(found.standard_error, 2)}"
    return (
        f"teacher's kernel on {found.examples:,} examples: NTK similarity "
        f"{number(found.similarity)}{error} ({found.probes} probes), centred alignment "
        f"{number(found.alignment)} ({found.kernel})"
    )


def shown_ranks(profile: GramProfile) -> list[int]:
    """Return a few ranks, evenly spread over those that were measured, the last left out."""
    inner = profile.ranks[:-1] or profile.ranks
    step = max(1, -(-len(inner) // _SHOWN))
    return list(inner[::step])
