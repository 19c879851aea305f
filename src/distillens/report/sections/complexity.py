"""The section on complexity: curves with one panel per measure, and properties of the Grams."""

from __future__ import annotations

from collections.abc import Sequence

from distillens.report import palette as colours
from distillens.report.backends.html import Safe, data_block, element, join, table
from distillens.report.backends.interactive import interactive
from distillens.report.figures.complexity import (
    MEASURES,
    complexity_panel,
    measured,
    missing_epochs,
    style_of,
    target_sets,
    target_title,
)
from distillens.report.figures.temperature import (
    TAUGHT,
    over_temperatures,
    temperature_measures,
    temperature_panel,
)
from distillens.report.tables.profile import (
    profile_headings,
    profile_lines,
    profile_rows,
    teacher_kernel_line,
)
from distillens.report.tables.text import number, plural, printable
from distillens.results.complexity import ComplexityCurves

_READING = (
    "How to read it: each curve is what one set of targets costs the student's kernel (its "
    "empirical NTK at that epoch); lower is easier to learn for this student at that time. Targets "
    "as high as random labels hold nothing that this kernel finds easy; a teacher well below the "
    "dataset labels is supervision that this student can follow."
)

_STANDING = (
    "How to read it: a kernel learns the directions of its largest eigenvalues first, so targets "
    "with much of their energy in a few of them are easy. Compare adjusted* complexity with what a "
    "kernel that only memorises (diagonal) and random targets of the same size would cost. A bound "
    "is on the error of the kernel's own fit, not of the network; a vacuous one carries no information."
)

_DASHES = {"solid": None, "dotted": "2 4", "dashed": "7 4"}


def complexity_part(measured_curves: Sequence[ComplexityCurves]) -> Safe:
    """Return the section with the complexity curves, or a note if none were measured."""
    title = element("h2", "Supervision complexity")
    if not measured_curves:
        words = "Complexity was not measured in this run, so there are no curves to show."
        return element("section", title, element("p", words, class_="missing"), id="complexity")
    titles = [
        f"{curves.student}, seed {curves.seed}, {curves.split} examples"
        for curves in measured_curves
    ]
    blocks = [
        element(
            "div",
            _curves(curves, index),
            class_="choice",
            data_choice=f"c{index}",
            hidden=index > 0,
        )
        for index, curves in enumerate(measured_curves)
    ]
    return element(
        "section",
        title,
        element("p", _READING, class_="reading"),
        chooser("Student", titles, [f"c{index}" for index in range(len(titles))]),
        *blocks,
        id="complexity",
    )


def chooser(label: str, titles: list[str], keys: list[str], first: int = 0) -> Safe:
    """Return a drop-down that shows one of the section's blocks; nothing where there is one."""
    if len(titles) < 2:
        return Safe("")
    options = [
        element("option", text, value=key, selected=key == keys[first])
        for text, key in zip(titles, keys, strict=True)
    ]
    return element(
        "label", f"{label} ", element("select", *options, class_="chooser"), class_="control"
    )


def plot(identity: str, label: str, shape: str) -> Safe:
    """Return the empty box that the page's script draws the figure of a data block into."""
    return element(
        "div", class_=f"plot {shape}", data_figure=identity, role="img", aria_label=label
    )


def _curves(curves: ComplexityCurves, index: int) -> Safe:
    shown = [measure for measure in MEASURES if measured(curves, measure)]
    missing = [measure.short for measure in MEASURES if measure not in shown]
    panels = []
    for measure in shown:
        identity = f"complexity-{index}-{measure.field}"
        figure = interactive(complexity_panel(curves, measure), legend=False)
        epochs = missing_epochs(curves, measure)
        gap = f" ∞ at epoch {_some(epochs)}, not plotted." if epochs else ""
        panels.append(
            element(
                "figure",
                element("figcaption", element("b", measure.title), f" – {measure.formula}.{gap}"),
                plot(identity, f"{measure.sentence} over epochs", "flat"),
                data_block(identity, figure),
            )
        )
    words = Safe("")
    if not shown:
        words = element("p", "No measure has a finite value here (a singular Gram gives ∞).")
    elif missing:
        words = element("p", f"Not measured or ∞ at all epochs: {', '.join(missing)}.")
    return join(
        _legend(curves),
        element("div", *panels, class_="grid"),
        words,
        element("p", _caption(curves), class_="caption"),
        *(element("p", note, class_="note") for note in curves.notes),
        _temperatures(curves, index),
        _profile(curves),
        _spectra(curves),
    )


def _temperatures(curves: ComplexityCurves, index: int) -> Safe:
    """Return the panels over temperatures, or nothing where the recipe asks for none."""
    if not curves.temperatures:
        return Safe("")
    title = element("h3", "The final teacher over temperatures")
    shown = temperature_measures(curves)
    if not shown:
        words = "No measure has a finite value at any temperature (a singular Gram gives ∞)."
        return join(title, element("p", words))
    panels, names, epoch = [], [TAUGHT], 0
    for measure in shown:
        found = over_temperatures(curves, measure)
        assert found is not None  # what is shown was measured
        identity = f"temperature-{index}-{measure.field}"
        figure = interactive(temperature_panel(found, measure), legend=False)
        names, epoch = [TAUGHT, *found.references], found.epoch
        panels.append(
            element(
                "figure",
                element("figcaption", element("b", measure.title), f" – {measure.formula}."),
                plot(
                    identity, f"{measure.sentence} of the final teacher over temperatures", "flat"
                ),
                data_block(identity, figure),
            )
        )
    reading = (
        f"The kernel at epoch {epoch}. A temperature softens the targets and so shrinks them: "
        "normalised values compare like with like. Level lines do not depend on τ."
    )
    lines = [
        element("span", _stroke_of(name), f" {target_title(name)}", class_="key") for name in names
    ]
    return join(
        title,
        element("p", reading, class_="reading"),
        element("div", *lines, class_="legend"),
        element("div", *panels, class_="grid"),
    )


def _legend(curves: ComplexityCurves) -> Safe:
    items = [
        legend_item(f"t{index}", _stroke_of(targets), target_title(targets))
        for index, targets in enumerate(target_sets(curves))
    ]
    return element("div", *items, class_="legend")


def _stroke_of(targets: str) -> Safe:
    line = element(
        "line",
        x1="1",
        x2="33",
        y1="6",
        y2="6",
        stroke=colours.of_targets(targets),
        stroke_width="3",
        stroke_dasharray=_DASHES[style_of(targets)],
    )
    return element("svg", line, width="34", height="12")


def legend_item(key: str, picture: Safe, text: str) -> Safe:
    """Return a legend entry with a check box that switches the traces of a ``legendgroup``."""
    box = element("input", type="checkbox", checked=True, data_key=key)
    return element("label", box, picture, f" {text}")


def _caption(curves: ComplexityCurves) -> str:
    residuals = [point.value.residual for point in curves.points]
    ridges = [point.value.ridge for point in curves.points]
    parts = [
        f"{curves.examples:,} {curves.split} examples; {curves.form} kernel; {curves.coding}; "
        f"τ = {curves.temperature:g}.",
    ]
    if "random labels" in target_sets(curves):
        parts.append(f"Random labels: mean of {plural(curves.random_draws, 'draw')}.")
    if residuals:
        ridge = number(max(ridges))
        parts.append(
            f"Largest relative residual of a solve: {number(max(residuals), 2)}; largest ridge "
            f"added to the diagonal: {ridge}."
        )
    return printable(" ".join(parts))


def _profile(curves: ComplexityCurves) -> Safe:
    """Return references, energies and bounds at the last epoch, and the teacher's kernel."""
    parts: list[Safe] = []
    if curves.profile is not None:
        found = curves.profile
        parts += [
            element("h3", f"Where the targets stand on the Gram of epoch {found.epoch}"),
            element("p", _STANDING, class_="reading"),
            table(list(profile_headings(found)), profile_rows(found)),
            *(element("p", line, class_="caption") for line in profile_lines(found)),
        ]
    if curves.teacher_kernel is not None:
        line = teacher_kernel_line(curves.teacher_kernel)
        parts.append(element("p", f"At the last of the epochs, the {line}.", class_="caption"))
    return join(*parts)


def _spectra(curves: ComplexityCurves) -> Safe:
    if not curves.spectra:
        return Safe("")
    heads = ["epoch", "trace", "smallest eigenvalue", "largest eigenvalue", "condition number"]
    heads.append("effective rank")
    body = [
        [
            str(spectrum.epoch),
            number(spectrum.trace),
            number(spectrum.smallest),
            number(spectrum.largest),
            number(spectrum.condition),
            number(spectrum.effective_rank),
        ]
        for spectrum in sorted(curves.spectra, key=lambda spectrum: spectrum.epoch)
    ]
    return element(
        "details", element("summary", "What the Gram looked like at each epoch"), table(heads, body)
    )


def _some(epochs: list[int]) -> str:
    shown = ", ".join(str(epoch) for epoch in epochs[:6])
    return shown if len(epochs) <= 6 else f"{shown} and {len(epochs) - 6} more"
