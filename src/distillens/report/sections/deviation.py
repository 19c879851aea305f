"""The third part of the page: deviation plots beside the one-hot reference, and their slopes."""

from __future__ import annotations

from collections.abc import Mapping

from plotly.io import to_json

from distillens.report import palette
from distillens.report.backends.html import Safe, data_block, element
from distillens.report.figures.deviation import WHO, Lines, deviation_figure, outside, shared_range
from distillens.report.figures.points import Points, Sample, panel_limit, sample
from distillens.report.sections import ranking
from distillens.report.sections.accuracy import swatch
from distillens.report.sections.complexity import chooser, legend_item, plot
from distillens.report.tables.slopes import names, slope_table, splits
from distillens.report.tables.text import fixed, listed, plural, slope
from distillens.results.confidence import Deviation
from distillens.results.training import StudyResult

_READING = (
    "How to read it: each point is an example; across, the log-odds that the teacher gives to its "
    "own top class, upwards what the student gives to that class (0 is even odds, 2.2 is 90 %, "
    "4.6 is 99 %). On the dotted diagonal the student is as sure as the teacher. Points below it "
    "on the left are low-confidence underfitting; a thick fitted line (one for each half) steeper "
    "than the diagonal, a slope above 1, exaggerates the teacher's confidence. Regression to the "
    "mean alone tilts the lines too, so compare with the one-hot student, which never saw the "
    "teacher."
)

_SIGNS = ("●", "▲", "▼", "✕")


def deviation_part(
    result: StudyResult, points: Mapping[str, Points], colours: dict[str, str]
) -> Safe:
    """Return the section with the deviation plots, or words where none were measured.

    Raises
    ------
    RunError
        The points of a deviation are damaged.
    """
    title = element("h2", "Student against teacher")
    if not result.deviations:
        words = "Deviations from the teacher were not measured in this run."
        return element("section", title, element("p", words, class_="missing"), id="deviation")
    panels = _panels(result, points)
    return element(
        "section",
        title,
        element("p", _READING, class_="reading"),
        *_pictures(result, panels, colours),
        *(slope_table(result, split, colours) for split in splits(result)),
        *_notes(result),
        id="deviation",
    )


def _panels(
    result: StudyResult, points: Mapping[str, Points]
) -> dict[tuple[str, str], tuple[Deviation, Sample]]:
    """Return what is drawn for a student and a split: its lowest seed that has points."""
    chosen: dict[tuple[str, str], Deviation] = {}
    for deviation in sorted(result.deviations, key=lambda deviation: deviation.seed):
        if deviation.points is not None and deviation.points in points:
            chosen.setdefault((deviation.student, deviation.split), deviation)
    limit = panel_limit(len(chosen))
    return {
        key: (
            deviation,
            sample(points[deviation.points], deviation.points, deviation.threshold, limit),
        )
        for key, deviation in chosen.items()
        if deviation.points is not None
    }


def _pictures(
    result: StudyResult,
    panels: dict[tuple[str, str], tuple[Deviation, Sample]],
    colours: dict[str, str],
) -> list[Safe]:
    without = [name for name in names(result) if not any(key[0] == name for key in panels)]
    words = []
    if without:
        text = f"The run folder holds no points of {listed(without)}, so they are not drawn."
        words.append(element("p", text, class_="missing"))
    if not panels:
        return words
    limits = shared_range([drawn for _, drawn in panels.values()])
    blocks = {
        key: data_block(
            _identity(key, panels),
            to_json(
                deviation_figure(_fit(deviation), drawn, colours[key[0]], limits), validate=False
            )
            or "{}",
        )
        for key, (deviation, drawn) in panels.items()
    }
    reference = ranking.reference_name(result)
    drawn_names = [name for name in names(result) if any(key[0] == name for key in panels)]
    others = [name for name in drawn_names if name != reference] or drawn_names
    chosen = ranking.chosen(result)
    first = others.index(chosen.name) if chosen is not None and chosen.name in others else 0
    choices = []
    for index, name in enumerate(others):
        figures = []
        for split in splits(result):
            figures += [
                _panel((shown, split), panels, colours, limits)
                for shown in dict.fromkeys((name, reference))
                if (shown, split) in panels
            ]
        choices.append(
            element(
                "div",
                element("div", *figures, class_="grid"),
                class_="choice",
                data_choice=f"d{index}",
                hidden=index != first,
            )
        )
    if reference not in drawn_names:
        text = f"There are no points of a one-hot student ({reference}) to compare with."
        words.append(element("p", text, class_="missing"))
    keys = [f"d{index}" for index in range(len(others))]
    return [*words, chooser("Student", others, keys, first), _legend(), *choices, *blocks.values()]


def _fit(deviation: Deviation) -> Lines:
    return Lines(deviation.slope_low, deviation.slope_high, deviation.threshold)


def _identity(key: tuple[str, str], panels: Mapping[tuple[str, str], object]) -> str:
    return f"deviation-{list(panels).index(key)}"


def _panel(
    key: tuple[str, str],
    panels: dict[tuple[str, str], tuple[Deviation, Sample]],
    colours: dict[str, str],
    limits: tuple[float, float],
) -> Safe:
    name, split = key
    deviation, drawn = panels[key]
    shown = f"{len(drawn.x):,} of {drawn.total:,} points, thinned at random"
    if len(drawn.x) == drawn.total:
        shown = f"all {plural(drawn.total, 'point')}"
    beyond = outside(drawn, limits)
    if beyond:
        shown += f", {beyond:,} beyond the axes (double-click to see them)"
    if drawn.dropped:
        shown += f", {drawn.dropped:,} not finite and left out"
    text = (
        f"slope {slope(deviation.slope_low)} in the low half (below "
        f"{fixed(deviation.threshold, 2)}), {slope(deviation.slope_high)} in the high half; "
        f"{shown}."
    )
    heading = f"{name}, {split}, seed {deviation.seed}"
    return element(
        "figure",
        element("figcaption", swatch(colours[name]), element("b", heading), Safe("<br>"), text),
        plot(_identity(key, panels), f"Deviation plot: {heading}. {text}", "square"),
    )


def _legend() -> Safe:
    items = [
        legend_item(f"w{index}", element("span", sign, style=f"color:{palette.WHO[index]}"), name)
        for index, (sign, name) in enumerate(zip(_SIGNS, WHO, strict=True))
    ]
    return element("div", element("span", "Who is right:"), *items, class_="legend")


def _notes(result: StudyResult) -> list[Safe]:
    said: dict[str, None] = {}
    for deviation in result.deviations:
        for note in deviation.notes:
            said[f"{deviation.student}, {deviation.split}, seed {deviation.seed}: {note}"] = None
    return [element("p", note, class_="note") for note in said]
