"""Thm. 4.3 as a map: where the distillation gradient was nearest to the truth, and where not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from distillens.errors import TheoryError
from distillens.results.figure import Finding, Panel, Picture, Shown, Surface
from distillens.theory.denoising import ChannelModel, draw_cosines

Array = NDArray[np.float64]

# On one example the cosines tie; what is left is rounding.
_TIE = 1e-12

_WORDS = {
    "signal": "signal t",
    "teacher_error": "teacher's error ε",
    "student_norm": "student's norm α",
    "examples": "examples N",
    "dimension": "inputs a channel D",
}


@dataclass(frozen=True, eq=False)
class DenoisingMap:
    """One map: ``along`` on its columns, ``against`` on its rows, all else as in ``model``.

    Margins are means over samples and nodes; standard errors are over samples, whose nodes are no
    independent trials.
    """

    model: ChannelModel
    along: str
    against: str
    along_Q: Array
    against_R: Array
    held_RQ: Array
    """Share of samples and nodes at which both inequalities held."""
    over_one_hot_RQ: Array
    """Mean of cos(distilled) − cos(one-hot)."""
    over_teacher_RQ: Array
    """Mean of cos(distilled) − cos(teacher)."""
    error_RQ: Array
    """Standard error of the smaller of the two means."""

    @property
    def name(self) -> str:
        """Both axes in words."""
        return f"{self.along} × {self.against}".replace("_", " ")

    def margin(self) -> Array:
        """Return the smaller of the two mean margins, (R, Q)."""
        return np.minimum(self.over_one_hot_RQ, self.over_teacher_RQ)

    def held_on_average(self) -> NDArray[np.bool_]:
        """Return where both margins lie above zero by two standard errors, (R, Q)."""
        return self.margin() > np.maximum(2 * self.error_RQ, _TIE)

    def failed_on_average(self) -> NDArray[np.bool_]:
        """Return where the smaller margin lies below zero by two standard errors, (R, Q)."""
        return self.margin() < -np.maximum(2 * self.error_RQ, _TIE)


def denoising_map(
    model: ChannelModel,
    along: str,
    along_values: Sequence[float],
    against: str,
    against_values: Sequence[float],
    *,
    samples: int = 20,
    seed: int = 0,
) -> DenoisingMap:
    """Vary two fields of a setting and measure the margins in each cell.

    Parameters
    ----------
    model
        The other fields.
    along, against
        Names of two fields of `ChannelModel`.
    along_values, against_values
        Q and R values.
    samples
        Samples of N examples a cell; at least 2, for standard errors.
    seed
        Seed of the random numbers.

    Raises
    ------
    TheoryError
        A field is unknown or a value is not in its range.
    """
    if samples < 2:
        raise TheoryError(f"{samples} samples; give at least 2, for standard errors")
    for name in (along, against):
        if name not in vars(model):
            raise TheoryError(f"there is no setting {name!r}; known: {', '.join(vars(model))}")
    if along == against:
        raise TheoryError(f"both axes are {along!r}; give two settings")
    rng = np.random.default_rng(seed)
    whole = {"classes", "dimension", "examples"}
    cells = []
    for row in against_values:
        for column in along_values:
            given = {along: column, against: row}
            fields = {name: int(v) if name in whole else float(v) for name, v in given.items()}
            cells.append(_cell(replace(model, **fields), samples, rng))
    shape = (len(against_values), len(along_values))
    held, over_one_hot, over_teacher, error = np.array(cells).T.reshape(4, *shape)
    return DenoisingMap(
        model, along, against, np.asarray(along_values, float), np.asarray(against_values, float),
        held, over_one_hot, over_teacher, error,
    )  # fmt: skip


def denoising_study(model: ChannelModel | None = None, samples: int = 20, seed: int = 0) -> Shown:
    """Run the study: signal and student norm against teacher error, examples against dimension."""
    base = ChannelModel() if model is None else model
    errors = np.geomspace(0.001, 0.8, 13)
    axes = (
        ("signal", np.geomspace(0.5, 16, 13), "teacher_error", errors),
        ("student_norm", np.geomspace(0.01, 3, 13), "teacher_error", errors),
        ("examples", np.geomspace(1, 2000, 13).round(), "dimension", np.geomspace(10, 1e5, 13).round()),
    )  # fmt: skip
    maps = [
        denoising_map(
            base, along, columns.tolist(), against, rows.tolist(), samples=samples, seed=seed
        )
        for along, columns, against, rows in axes
    ]
    arrays = {
        f"{found.along}-{found.against}/{name}": array
        for found in maps
        for name, array in vars(found).items()
        if isinstance(array, np.ndarray)
    }
    picture = Picture(
        "Thm. 4.3, exploratory: distillation gradient against one-hot gradient and teacher",
        tuple(_panel(found) for found in maps),
        f"Share of nodes, over {samples} samples a cell (seed {seed}), where "
        f"the distillation gradient is nearer to the truth than both. In the other cells "
        f"N = {base.examples}, D = {base.dimension}, "
        f"K = {base.classes}, t = {base.signal:g}, α = {base.student_norm:g}, "
        f"r = {base.teacher_norm:g}, ε = {base.teacher_error:g}.",
    )
    return Shown(
        "denoising",
        "Nagarajan et al., first arXiv version of 2301.12923, Thm. 4.3 (exploratory)",
        {"samples": samples, "seed": seed, **vars(base)},
        tuple(finding for found in maps for finding in _findings(found)),
        arrays,
        picture,
    )


def _findings(found: DenoisingMap) -> list[Finding]:
    held, failed = found.held_on_average(), found.failed_on_average()
    cells = (
        ("held", held, f"of {held.size} cells, by 2 std. errors"),
        ("failed", failed, "by 2 std. errors"),
        ("worse than one-hot", found.over_one_hot_RQ < -_TIE, "cells, by the mean"),
        ("worse than the teacher", found.over_teacher_RQ < -_TIE, "cells, by the mean"),
    )
    return [Finding(f"{found.name}: {what}", int(at.sum()), how) for what, at, how in cells]


def _panel(found: DenoisingMap) -> Panel:
    surface = Surface(
        found.along_Q,
        found.against_R,
        found.held_RQ,
        "share of draws where it held",
        limits=(0.0, 1.0),
    )
    x, y = _WORDS[found.along], _WORDS[found.against]
    return Panel(found.name, x, y, surface=surface, x_scale="log", y_scale="log")


def _cell(
    model: ChannelModel, samples: int, rng: np.random.Generator
) -> tuple[float, float, float, float]:
    sample = draw_cosines(model, samples, rng)
    reached = np.isfinite(sample.margin())
    if not reached.any():
        return np.nan, np.nan, np.nan, np.nan
    over_one_hot = (sample.distilled_SK - sample.one_hot_SK)[reached]
    over_teacher = (sample.distilled_SK - sample.teacher)[reached]
    means = float(over_one_hot.mean()), float(over_teacher.mean())
    difference = sample.distilled_SK - (
        sample.one_hot_SK if means[0] < means[1] else sample.teacher
    )
    # Nodes of one sample share examples, so a sample counts once; those without any are left out.
    rows = reached.any(axis=1)
    by_sample = np.nanmean(np.where(reached, difference, np.nan)[rows], axis=1)
    error = float(by_sample.std(ddof=1) / np.sqrt(len(by_sample))) if len(by_sample) > 1 else np.nan
    return float((sample.margin()[reached] > _TIE).mean()), *means, float(error)
