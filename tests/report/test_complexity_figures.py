"""The complexity figures: over epochs and over temperatures, on the page, as files and as a table."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import command, refused
from report_cases import contents, curves_of, drawn, figures, own_text, study, value_of
from rich.console import Console

from distillens.report import render, temperature_table, write_figures
from distillens.report.contents import Contents
from distillens.report.figures.complexity import (
    MEASURES,
    complexity_picture,
    target_sets,
    target_title,
)
from distillens.report.figures.temperature import temperature_picture
from distillens.report.sections.complexity import order_remark, values_grid
from distillens.report.tables.text import number
from distillens.results.base import to_json
from distillens.results.complexity import ComplexityCurves, TemperaturePoint
from distillens.results.records import AnalysisRecord
from distillens.runs.layout import Run
from distillens.runs.records import delete_record, write_record

TEMPERATURES = (1.0, 2.0, 4.0, 8.0)


def warmed() -> ComplexityCurves:
    """Curves with temperatures, given out of order: τ = t has adjusted 1/t and normalised 1."""
    points = [TemperaturePoint(20, t, value_of(1 / t, 1 / t)) for t in reversed(TEMPERATURES)]
    return replace(curves_of(), temperatures=tuple(points))


def with_curves(curves: ComplexityCurves) -> Contents:
    return contents(complexity=(curves,))


def run_of(curves: ComplexityCurves, folder: Path) -> Path:
    """Write a run that holds nothing but results and a record of curves."""
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text("name: x\nseeds: [0]\nsupervisions: []\n")
    data = {"fingerprint": "x", "classes": ["a", "b"], "input_shape": [1]}
    (folder / "data.json").write_text(json.dumps(data))
    result = study()
    (folder / "results.json").write_text(to_json(result))
    record = AnalysisRecord(1, "complexity", {}, (), result.provenance, json.loads(to_json(curves)))
    write_record(folder / "analyses" / "complexity-x", record, {})
    return folder


def test_the_page_draws_the_teacher_over_temperatures_beside_level_lines() -> None:
    found = figures(own_text(render(with_curves(warmed()))))
    assert {name.split("-")[2] for name in found if name.startswith("temperature")} == {
        "adjusted",
        "adjusted_star",
        "normalised",
        "normalised_star",
    }
    curves = drawn(found["temperature-0-adjusted"])
    assert curves["final teacher"] == (list(TEMPERATURES), [1.0, 0.5, 0.25, 0.125])
    assert drawn(found["temperature-0-normalised"])["final teacher"][1] == [1.0] * 4
    at_20 = {p.targets: p.value.adjusted for p in curves_of().points if p.epoch == 20}
    for name, targets in (("dataset labels", "labels"), ("random labels", "random labels")):
        x, y = curves[name]
        assert x == [1.0, 8.0]
        assert y == pytest.approx([at_20[targets]] * 2, rel=1e-3)
    axes = found["temperature-0-adjusted"]["layer"][-1]["encoding"]
    assert axes["x"]["scale"]["type"] == "log"


def test_the_page_says_nothing_of_temperatures_that_were_not_asked_for() -> None:
    assert "over temperatures" not in own_text(render(with_curves(curves_of())))


def test_an_infinite_value_breaks_the_curve_and_all_infinite_ones_are_said() -> None:
    broken = replace(value_of(1.0, 1.0), adjusted=np.inf)
    first, *others = warmed().temperatures
    some = replace(warmed(), temperatures=(replace(first, value=broken), *others))
    found = figures(own_text(render(with_curves(some))))
    teacher = drawn(found["temperature-0-adjusted"])["final teacher"]
    assert teacher[1] == [1.0, 0.5, 0.25, None]
    gone = replace(
        broken, adjusted_star=np.inf, normalised=np.inf, normalised_star=np.inf, plain=np.inf
    )
    none = replace(warmed(), temperatures=tuple(replace(p, value=gone) for p in others))
    assert "no measure has a finite value at any" in own_text(
        render(with_curves(none))
    ).lower()  # fmt: skip
    assert temperature_picture(none) is None


def test_the_table_has_the_references_and_a_row_a_temperature() -> None:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(temperature_table(warmed()))
    lines = [line.split() for line in capture.get().splitlines() if line.strip()]
    rows = {" ".join(words[:-4]): words[-4:] for words in lines}
    assert [rows[f"τ = {t:g}"][0] for t in TEMPERATURES] == ["1.00", "0.500", "0.250", "0.125"]
    assert rows["τ = 8"][2] == "1.00"
    assert "dataset labels" in rows
    assert "random labels" in rows


def test_the_picture_has_the_measures_that_the_loss_asks_for() -> None:
    by_cross_entropy = complexity_picture(warmed())
    assert by_cross_entropy is not None
    assert [panel.title for panel in by_cross_entropy.panels] == ["Adjusted*", "Normalised*"]
    points = tuple(replace(point, gradient=None) for point in warmed().points)
    by_squares = temperature_picture(replace(warmed(), points=points))
    assert by_squares is not None
    assert [panel.title for panel in by_squares.panels] == ["Adjusted", "Normalised"]
    teacher = by_squares.panels[0].curves[0]
    assert list(teacher.y_M) == [1.0, 0.5, 0.25, 0.125]
    assert by_squares.panels[0].x_ticks == TEMPERATURES


def test_the_command_writes_both_figures_as_svg_and_png(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A name with dollars is no formula.
    run = run_of(replace(warmed(), student="at $5 or $x^{"), tmp_path / "run")
    assert command("report", run, "--figures") == 0
    assert "temperatures.svg" in capsys.readouterr().out
    written = {path.name for path in (run / "figures").iterdir()}
    names = ("complexity", "temperatures")
    assert written == {f"{name}.{ending}" for name in names for ending in ("svg", "png")}
    assert (run / "figures" / "complexity.png").read_bytes().startswith(b"\x89PNG")
    # Text stays text in the SVG; only the temperatures that were measured are marked.
    picture = (run / "figures" / "temperatures.svg").read_text()
    for words in ("temperature τ", "dataset labels", "kernel at epoch 20", "at $5 or $x^{"):
        assert words in picture
    before = (run / "figures" / "temperatures.svg").read_bytes()
    write_figures(run)
    assert (run / "figures" / "temperatures.svg").read_bytes() == before


def test_no_curves_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(warmed(), tmp_path / "run")
    delete_record(Run(run), "complexity-x")
    error = refused(capsys, "report", run, "--figures")
    assert "no finite values to draw" in error


def test_targets_whose_order_changes_under_normalisation_are_named() -> None:
    curves = curves_of()
    remark = order_remark(curves)
    last = max(point.epoch for point in curves.points)
    values = {point.targets: point.value for point in curves.points if point.epoch == last}
    labels, online = values["labels"], values["online teacher"]
    assert labels.adjusted is not None
    assert online.adjusted is not None
    assert labels.normalised is not None
    assert online.normalised is not None
    same = (labels.adjusted - online.adjusted) * (labels.normalised - online.normalised) > 0
    assert same == ("online teacher are below those of dataset labels" not in remark)
    equal = tuple(
        replace(point, value=replace(point.value, normalised=point.value.adjusted))
        for point in curves.points
    )
    starred = tuple(
        replace(point, value=replace(point.value, normalised_star=point.value.adjusted_star))
        for point in equal
    )
    assert order_remark(replace(curves, points=starred)) == ""
    swapped = tuple(
        replace(point, value=replace(point.value, normalised=-(point.value.adjusted or 0.0)))
        for point in starred
    )
    assert "The order depends on the normalisation" in order_remark(replace(curves, points=swapped))


def test_values_of_a_figure_are_in_its_table() -> None:
    curves = curves_of()
    grid = values_grid(curves, MEASURES[0])
    assert grid.headings == ["epoch", *map(target_title, target_sets(curves))]
    first = {point.targets: point.value.adjusted for point in curves.points if point.epoch == 0}
    assert grid.rows[0] == ["0", *(number(first[name]) for name in target_sets(curves))]
