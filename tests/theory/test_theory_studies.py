"""The lab's files: numbers, arrays and pictures of a study, from Python and the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from distillens.cli import main as cli
from distillens.errors import TheoryError
from distillens.report import lab_json, write_lab
from distillens.report.draw import panel_spec, svg_text
from distillens.results.figure import Curve, Finding, Panel, Picture, Surface
from distillens.theory import STUDIES, ChannelModel
from distillens.theory.studies import (
    bias_study,
    denoising_study,
    flow_study,
    ridge_study,
    risk_study,
    run_study,
)

SMALL = {
    "flow": lambda: flow_study([1.0, 0.5, 0.1], generations=3),
    "bias": lambda: bias_study(draws=50),
    "risk": lambda: risk_study(directions=5, decays=2, generations=2),
    "ridge": lambda: ridge_study(directions=6, rounds=3),
    "denoising": lambda: denoising_study(ChannelModel(examples=10), samples=2),
}


def test_every_study_has_a_small_one():
    assert set(SMALL) == set(STUDIES)


@pytest.mark.parametrize("name", sorted(SMALL))
def test_a_study_writes_numbers_arrays_and_pictures(name, tmp_path):
    shown = SMALL[name]()
    paths = {path.suffix: path for path in write_lab(shown, tmp_path / "lab")}
    assert shown.name == name
    numbers = json.loads(paths[".json"].read_text())
    assert numbers["study"] == name
    assert set(numbers["findings"]) == {finding.name for finding in shown.findings}
    with np.load(paths[".npz"]) as arrays:
        assert set(arrays.files) == set(shown.arrays)
        for key in arrays.files:
            np.testing.assert_array_equal(arrays[key], shown.arrays[key])
    svg = paths[".svg"].read_text()
    ElementTree.fromstring(svg)
    # Text stays text.
    assert shown.picture.title in svg
    assert paths[".png"].read_bytes().startswith(b"\x89PNG")


def test_the_same_picture_is_the_same_file():
    picture = SMALL["flow"]().picture
    assert svg_text(picture) == svg_text(picture)


def test_a_picture_draws_what_it_is_given():
    x = np.array([1.0, 2.0, 4.0])
    values = np.array([[-1.0, 0.5, np.nan], [0.2, 2.0, 1.0]])
    curves = Curve(x, x**2, "square"), Curve(x, np.array([1.0, np.nan, 0.0]), "", 1, "points")
    left = Panel("left", "x", "y", curves, y_scale="log")
    surface = Surface(x, x[:2], values, "value")
    right = Panel("right", "x", "y", surface=surface, x_scale="log")
    square, points = panel_spec(left)["layer"][-1]["layer"]
    assert square["data"]["values"] == [[1.0, 1.0], [2.0, 4.0], [4.0, 16.0]]
    assert square["encoding"]["color"]["legend"]["values"] == ["square"]
    # A logarithmic axis cannot show 0.
    assert points["data"]["values"] == [[1.0, 1.0], [2.0, None], [4.0, None]]
    cells, border = panel_spec(right)["layer"][-1]["layer"]
    assert [cell[4] for cell in cells["data"]["values"]] == [-1.0, 0.5, 0.2, 2.0, 1.0]
    assert cells["data"]["values"][0][:4] == [0.5, 0.5, 1.5, 1.5]
    # Centred: zero is in the middle of the scale, and a line separates the signs.
    assert cells["encoding"]["color"]["scale"]["domain"] == [-2.0, 2.0]
    assert border["data"]["values"] == [[1.5, 0.5, 1.5, 1.5], [0.5, 1.5, 1.5, 1.5]]
    svg = svg_text(Picture("title", (left, right)))
    for words in ("title", "left", "right", "square", "value"):
        assert words in svg


def test_flow_study_compares_at_equal_progress():
    study = flow_study(progress=0.8, generations=4).arrays
    np.testing.assert_allclose(study["filters_GK"][:, 0], 0.8)
    assert (np.diff(study["filters_GK"], axis=0)[:, 1:] < 0).all()
    assert (study["student_HK"] <= study["teacher_HK"]).all()


@pytest.fixture
def quick(monkeypatch):
    """The command line's studies, but the small ones."""
    monkeypatch.setattr("distillens.theory.studies.STUDIES", SMALL)


def test_command_writes_and_prints(quick, tmp_path, capsys):
    with pytest.raises(SystemExit) as done:
        cli.main(["theory", "bias", "--out", str(tmp_path / "out")])
    assert done.value.code in (0, None)
    printed = capsys.readouterr().out
    assert "held" in printed
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "bias.json", "bias.npz", "bias.png", "bias.svg",
    }  # fmt: skip


def test_command_prints_json(quick, tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli.main(["theory", "bias", "--json", "--out", str(tmp_path)])
    printed = json.loads(capsys.readouterr().out)
    assert printed["findings"]["held"] == printed["findings"]["draws"] == 50
    assert printed == json.loads((tmp_path / "bias.json").read_text())


def test_an_unknown_study_is_one_line(capsys, tmp_path):
    with pytest.raises(SystemExit) as done:
        cli.main(["theory", "denoise", "--out", str(tmp_path / "out")])
    assert done.value.code == 2
    assert capsys.readouterr().err == (
        "distillens: there is no study 'denoise'; did you mean 'denoising'?\n"
    )
    assert not (tmp_path / "out").exists()
    with pytest.raises(TheoryError):
        run_study("")


def test_a_file_in_the_way_is_one_line(quick, tmp_path, capsys):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(SystemExit) as done:
        cli.main(["theory", "flow", "--out", str(tmp_path / "out")])
    assert done.value.code == 2
    assert "is a file" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "mine"


def test_numbers_that_are_not_finite_are_null_in_json():
    shown = SMALL["flow"]()
    unknown = replace(shown, findings=(Finding("none found", float("nan"), ""),))
    assert json.loads(lab_json(unknown))["findings"] == {"none found": None}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: flow_study([1.0]), "two eigenvalues"),
        (lambda: flow_study([0.5, 1.0]), "largest first"),
        (lambda: flow_study(progress=1.0), "below 1"),
        (lambda: ridge_study(directions=1), "at least 2"),
        (lambda: ridge_study(progress=0.0), "above 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(call, words):
    with pytest.raises(TheoryError) as caught:
        call()
    assert words in str(caught.value)
