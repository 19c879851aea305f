"""The report: what the table says, and that a page says it safely, completely and offline."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import vl_convert
from report_cases import (
    ATTACK,
    SLOPES,
    Elements,
    around,
    audited,
    colours,
    confidence,
    contents,
    curves_of,
    drawn,
    figures,
    log_odds,
    measured,
    own_text,
    study,
    terminal,
    validated,
    value_of,
)

from distillens.errors import RunError
from distillens.report import markdown_table, render
from distillens.report.contents import Contents
from distillens.report.figures.confidence import BY_WHO, Cloud, confidence_panel
from distillens.report.figures.points import PANEL_LIMIT, sample
from distillens.report.sections.accuracy_summary import accuracy_summary
from distillens.report.sections.complexity_summary import complexity_summary
from distillens.report.sections.confidence_summary import confidence_summary
from distillens.report.tables.text import count, duration, fixed, number, slope
from distillens.results.base import Estimate, from_json, to_json
from distillens.results.complexity import (
    ComplexityCurves,
    Spectrum,
)
from distillens.results.confidence import Confidence, StudentAudit
from distillens.results.training import Provenance, StudyResult, Trial, TunedRate, Tuning


@pytest.fixture(scope="module")
def page() -> str:
    return render(contents(study(), *confidence()))


class TestTable:
    def test_rows_say_mean_std_interval_gain_and_size(self):
        lines = terminal(study()).splitlines()
        place = next(index for index, line in enumerate(lines) if "online τ=4" in line)
        assert " ".join(lines[place].split()[2:]) == "3 88.37 ± 0.25 +3.37 95.10 61,706 7.2"
        assert lines[place + 1].split() == ["[87.74,", "88.99]", "[+2.14,", "+4.59]"]
        assert "11.7M" in next(line for line in lines if "teacher" in line)

    def test_teacher_and_reference_come_first_without_a_gain(self):
        result = study()
        shuffled = replace(result, rows=result.rows[::-1])
        lines = markdown_table(shuffled).splitlines()
        assert [line.split("|")[1].strip() for line in lines[2:4]] == ["teacher", "no KD"]
        assert all(line.split("|")[5].strip() == "–" for line in lines[2:4])

    def test_caption_states_splits_classes_and_last_epoch(self):
        text = " ".join(terminal(study()).split())
        for said in (
            "9,000 training",
            "4,000 test examples",
            "10 classes",
            "last epoch (epoch 20)",
        ):
            assert said in text

    @pytest.mark.parametrize("best", list(SLOPES))
    def test_only_the_student_chosen_on_validation_is_bold(self, best):
        result = validated(dict.fromkeys(SLOPES, 0.8) | {best: 0.81})
        lines = terminal(result, colour=True).splitlines()
        bold = [line for line in lines if "\x1b[1m" in line and "61,706" in line]
        assert [name for name in SLOPES if any(name in line for line in bold)] == [best]
        assert "Bold: highest mean validation accuracy among students (81.00 %)." in " ".join(
            terminal(result).split()
        )
        text = own_text(render(contents(result)))
        assert re.findall(r'<tr class="best"><th scope="row">.*?</span>(.*?)</th>', text) == [best]

    def test_of_equals_the_first_of_the_recipe_is_bold(self):
        text = markdown_table(validated({"offline τ=4": 0.9, "online τ=4": 0.9}))
        assert "**offline τ=4**" in text
        assert "**online τ=4**" not in text

    def test_nothing_is_bold_without_validation_or_while_networks_are_open(self):
        for result, said in (
            (replace(validated({"no KD": None}), validation_examples=0), "without validation"),
            (replace(study(), open_cells=("no KD, seed 3",)), "networks are not trained"),
        ):
            text = markdown_table(result)
            assert "**" not in text
            assert (
                f"Nothing is bold{':' * (said[0] == 'w')} {'while ' * (said[0] == 'n')}{said}"
                in text
            )
            assert 'class="best"' not in own_text(render(contents(result)))

    @pytest.mark.parametrize(
        ("rates", "own", "said"),
        [
            (
                (0.05, 0.05, 0.05, 0.05),
                {},
                "share the learning rate 0.05, although τ² and α change",
            ),
            ((0.05, 0.05, 0.02, 0.05), {"learning_rate": 0.02}, "τ=4 (learning rate 0.02)."),
            (
                (0.05, 0.05, 0.05, 0.05),
                {"epochs": 9, "schedule": {"kind": "cosine"}},
                "Training of its own: offline τ=4 (epochs 9, schedule kind cosine). All supervisions",
            ),
        ],
    )
    def test_says_with_which_learning_rates_students_were_trained(self, rates, own, said):
        result = study()
        students = [
            replace(row, learning_rate=rate, training=own if row.name == "offline τ=4" else {})
            for row, rate in zip(result.rows[1:], rates, strict=True)
        ]
        told = replace(result, rows=(result.rows[0], *students))
        text = " ".join(terminal(told).split())
        assert said in text
        assert ("All supervisions share" in text) == (len(set(rates)) == 1)
        assert "learning rate" not in terminal(result)

    def test_says_which_learning_rates_were_chosen(self):
        tuning = Tuning(
            3,
            (0.02, 0.01, 0.04),
            (TunedRate("no KD", 0.04, True), TunedRate("offline τ=4", 0.02, False)),
            (
                Trial("no KD", 3, 0.04, 20, 7.0, 0.815, 0.612, "ab"),
                Trial("no KD", 3, 0.02, 20, 7.0, None, None, "", "the loss is nan"),
            ),
        )
        result = replace(study(), tuning=tuning)
        assert (
            "Learning rate chosen on validation with seed 3 out of 0.01, 0.02, 0.04: "
            "no KD 0.04 (edge of the grid), offline τ=4 0.02."
        ) in " ".join(terminal(result).split())
        text = own_text(render(contents(result)))
        assert '<tr class="best"><th scope="row">no KD</th><td>0.04</td><td>81.50</td>' in text
        assert "<td>0.02</td><td>diverged</td>" in text

    def test_one_seed_has_neither_std_nor_interval(self):
        result = study()
        row = replace(
            result.rows[-1],
            seeds=(0,),
            deviation=None,
            accuracy=Estimate(0.884),
            gain=Estimate(0.03),
        )
        line = markdown_table(replace(result, rows=(row,))).splitlines()[2]
        assert "| **88.4** | **–** | **+3.0** |" in line

    def test_fits_a_terminal_of_eighty(self):
        assert "…" not in terminal(study(), width=80)
        assert terminal(study(), width=80).split() == terminal(study()).split()

    def test_markup_and_escape_sequences_in_a_name_stay_text(self):
        result = study()
        row = replace(result.rows[-1], name="[red]x[/] \x1b]0;owned\x07 | <b>")
        hostile = replace(result, rows=(row,))
        assert "[red]x[/] �]0;owned� | <b>" in terminal(hostile)
        assert "\\[red\\]x\\[/\\] �\\]" not in terminal(hostile)
        assert "\\| &lt;b&gt;" in markdown_table(hostile)


class TestNumbers:
    @pytest.mark.parametrize(
        ("value", "written"),
        [
            (None, "–"),
            (float("inf"), "∞"),
            (float("-inf"), "−∞"),
            (float("nan"), "NaN"),
            (0.0, "0"),
            (0.03124, "0.0312"),
            (48_200.4, "48,200"),
            (3.14e-8, "3.14·10⁻⁸"),
            (-2.5, "−2.50"),
        ],
    )
    def test_any_size(self, value, written):
        assert number(value) == written

    def test_a_slope_shows_on_which_side_of_one_it_lies(self):
        assert slope(around(1.10, 0.05)) == "1.10 [1.05, 1.15]"
        assert slope(around(1.10, 0.098)) == "1.100 [1.002, 1.198]"

    def test_rounding_to_zero_has_no_sign(self):
        assert fixed(-0.001, 1) == "0.0"

    def test_counts_and_times(self):
        assert [count(61_706), count(11_689_512), count(1_300_000_000)] == [
            "61,706",
            "11.7M",
            "1.3B",
        ]
        assert [duration(8.44), duration(200), duration(7500)] == [
            "8.4 s",
            "3 min 20 s",
            "2 h 05 min",
        ]


class TestPage:
    def test_has_its_parts_and_a_figure_for_each_measure(self, page):
        for part in ("accuracy", "complexity", "confidence", "provenance"):
            assert f'id="{part}"' in page
        found = figures(page)
        assert {name.split("-")[2] for name in found if name.startswith("complexity")} == {
            "adjusted",
            "adjusted_star",
            "normalised",
            "normalised_star",
            "gradient",
        }
        assert sum(name.startswith("confidence") for name in found) == 8
        for identity in re.findall(r'data-figure="([^"]*)"', page):
            assert identity in found

    def test_says_notes_and_provenance(self, page):
        for said in (
            "the validation split is small",
            "a ridge of 1e-06 was added",
            "distillens run digits --out runs/demo",
            "torch 2.13.0",
            "sha256:5d2f",
            "5 min 52 s",
        ):
            assert said in own_text(page)

    def test_asks_the_network_for_nothing(self, page):
        text = own_text(page)
        attributes = Elements(text).attributes
        assert not {"src", "srcset", "action", "data", "formaction"} & {
            key for key, _ in attributes
        }
        assert all(value.startswith("#") for key, value in attributes if key == "href")
        assert "url(" not in text
        assert "@import" not in text
        assert "http://" not in text
        assert "https://" not in text
        assert "default-src 'none'" in text
        # A menu with a link to the editor on Vega's site.
        assert "actions: false" in text

    def test_holds_vega_once_and_stays_small(self, page):
        version = vl_convert.get_vega_version()
        assert page.count(f"/*! Vega {version},") == 1, "run tools/bundle_vega.py"
        assert len(page.encode()) < 2_000_000

    def test_policy_allows_exactly_the_two_scripts(self, page):
        policy = re.search(r'content="(default-src [^"]*)"', page)
        assert policy is not None
        assert policy[1].count("sha256-") == 2
        assert len(re.findall(r"<script>", page)) == 2
        for script in re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL):
            digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in policy[1]
        assert "unsafe-eval" not in policy[1]
        assert "script-src 'unsafe" not in policy[1]

    def test_every_table_is_shown_without_javascript(self, page):
        text = own_text(page)
        assert text.count("data-choice") >= 4
        attributes = Elements(text).attributes
        assert "hidden" not in {key for key, _ in attributes}
        styles = [value for key, value in attributes if key == "style"]
        assert not [style for style in styles if re.search("display|visibility|opacity", style)]

    def test_same_result_gives_the_same_page(self, page):
        assert render(contents(study(), *confidence())) == page

    def test_the_supervision_has_its_colour_in_table_and_figure(self, page):
        swatch = re.search(r'style="background:(#\w+)"></span>online τ=4', page)
        assert swatch is not None
        found = [colours(figure) for figure in figures(page).values()]
        assert {one["online teacher"] for one in found if "online teacher" in one} == {swatch[1]}

    def test_infinite_and_missing_values_are_words(self):
        singular = replace(
            value_of(1.0, 1.0),
            plain=float("inf"),
            adjusted=None,
            adjusted_star=float("inf"),
            normalised=None,
            normalised_star=float("inf"),
        )
        curves = curves_of()
        points = tuple(replace(point, value=singular, gradient=None) for point in curves.points)
        spectra = (Spectrum(0, 1.0, 0.0, 1.0, float("inf")),)
        broken = replace(curves, points=points, spectra=spectra)
        text = own_text(render(contents(complexity=(broken,))))
        assert "No measure has a finite value" in text
        assert "<td>∞</td>" in text
        assert not any(name.startswith("complexity") for name in figures(text))

    def test_a_curve_breaks_where_it_is_infinite(self):
        curves = curves_of()
        first = replace(curves.points[0], value=replace(curves.points[0].value, adjusted=np.inf))
        broken = replace(curves, points=(first, *curves.points[1:]))
        text = own_text(render(contents(complexity=(broken,))))
        assert "∞ at epoch 0, not plotted" in text
        assert drawn(figures(text)["complexity-0-adjusted"])["dataset labels"][1][0] is None

    def test_curves_far_apart_get_a_log_axis_that_says_so(self):
        curves = curves_of()
        first = replace(curves.points[0], value=replace(curves.points[0].value, adjusted=900.0))
        far = replace(curves, points=(first, *curves.points[1:]))
        text = own_text(render(contents(complexity=(far,))))
        axis = figures(text)["complexity-0-adjusted"]["layer"][-1]["encoding"]["y"]
        assert axis["scale"]["type"] == "log"
        assert axis["title"].endswith("log)")

    def test_missing_parts_are_said_not_drawn(self):
        bare = replace(study(), rows=(), cells=(), notes=())
        text = own_text(render(contents(bare, complexity=())))
        assert "has no accuracies" in text
        assert "Complexity was not measured" in text
        assert "The confidence of the students was not measured" in text
        assert figures(text) == {}
        assert 'class="plot' not in text

    def test_missing_points_leave_the_numbers(self):
        found, _ = confidence()
        text = own_text(render(contents(study(), found)))
        names = "no KD, seed 0, offline τ=1, seed 0, offline τ=4, seed 0 and online τ=4, seed 0"
        assert f"The points of {names} are missing" in text
        assert slope(found.students[3].audit.splits[1].exaggeration.slope_low.ordinary) in text

    def test_many_panels_stay_below_the_limit(self):
        student, points = audited("no KD")
        many = {key: np.tile(array, 60) for key, array in points["test"].items()}
        found = measured(
            *((replace(student, student=f"student {index}"), {}) for index in range(20))
        )
        text = render(contents(study(), found, [{"train": many, "test": many}] * 20))
        assert len(text.encode()) < 3_000_000
        assert "750 of 24,000 points, chosen uniformly at random" in text


class TestHostileRun:
    def hostile(self, *measured: Any) -> Contents:
        result = study()
        curves = curves_of(ATTACK)
        points = tuple(
            replace(point, targets=ATTACK if point.targets == "labels" else point.targets)
            for point in curves.points
        )
        curves = replace(curves, points=points, coding=ATTACK, split=ATTACK, notes=(ATTACK,))
        rows = tuple(
            replace(row, name=f"{row.name}{ATTACK}", accuracy=around(0.9, 0.1, ATTACK))
            for row in result.rows
        )
        cells = tuple(
            replace(cell, supervision=ATTACK, weights_digest=ATTACK) for cell in result.cells
        )
        made = Provenance(ATTACK, ATTACK, ATTACK, 1.0, {ATTACK: ATTACK}, ATTACK, ATTACK, ATTACK)
        attacked = replace(
            result,
            name=ATTACK,
            description=ATTACK,
            loss=ATTACK,
            rows=rows,
            cells=cells,
            provenance=made,
            notes=(ATTACK,),
        )
        return contents(attacked, *measured, complexity=(curves, curves))

    def page(self) -> str:
        found, points = confidence()
        students = tuple(
            replace(
                student,
                student=ATTACK,
                notes=(ATTACK,),
                audit=replace(
                    student.audit,
                    splits=tuple(replace(split, notes=(ATTACK,)) for split in student.audit.splits),
                ),
            )
            for student in found.students
        )
        return render(self.hostile(replace(found, students=students, notes=(ATTACK,)), points))

    def test_no_string_of_a_run_becomes_markup(self):
        clean = own_text(render(contents(study(), *confidence())))
        text = own_text(self.page())
        assert "alert(1)" in text, "the string itself is shown"
        assert "<script>alert" not in text
        assert "<img" not in text
        assert text.count("</script>") == text.count("<script")
        # Only tags and attributes that a clean page has too.
        ours, theirs = Elements(clean), Elements(text)
        assert theirs.tags <= ours.tags
        assert {key for key, _ in theirs.attributes} <= {key for key, _ in ours.attributes}

    def test_a_data_block_cannot_be_closed_from_inside(self):
        result = replace(study(), name="x")
        curves = replace(curves_of(), points=())
        names = f"<!--{ATTACK}\u2028&", "</script><script>"
        points = [
            replace(point, targets=names[place % 2])
            for place, point in enumerate(curves_of().points)
        ]
        text = own_text(
            render(contents(result, complexity=(replace(curves, points=tuple(points)),)))
        )
        found = drawn(figures(text)["complexity-0-adjusted"])
        assert "</script><script>" in found
        assert any(name.startswith("<!--") for name in found)
        assert "<!--" not in text


class TestPoints:
    def arrays(self, n: int = 10_000) -> dict[str, np.ndarray]:
        x, y = log_odds("no KD", n, 3)
        return {"x": x, "y": y, "who": np.arange(n) % 4}

    def test_thinning_is_the_same_each_time_and_keeps_the_total(self):
        first, second = (sample(self.arrays(), "p.npz", 3.0) for _ in range(2))
        np.testing.assert_array_equal(first.x, second.x)
        assert (len(first.x), first.total) == (PANEL_LIMIT, 10_000)

    def test_centres_are_of_all_points(self):
        arrays = self.arrays()
        low = arrays["x"] < 3.0
        kept = sample(arrays, "p.npz", 3.0, limit=50)
        assert kept.low == pytest.approx((arrays["x"][low].mean(), arrays["y"][low].mean()))

    def test_the_drawn_lines_are_the_fitted_ones(self):
        x = np.linspace(-2.0, 8.0, 501)
        y = np.where(x < 3.0, 1.0 + 1.5 * x, 4.0 + 0.5 * x)
        split = audited("no KD")[0].audit.splits[1]
        shown = split.exaggeration
        fits = [
            replace(part, ordinary=Estimate(value))
            for part, value in ((shown.slope_low, 1.5), (shown.slope_high, 0.5))
        ]
        shown = replace(shown, threshold=3.0, slope_low=fits[0], slope_high=fits[1])
        kept = sample({"x": x, "y": y, "who": np.zeros(501, int)}, "p.npz", 3.0)
        cloud = Cloud("test", replace(split, exaggeration=shown), kept, BY_WHO)
        low, high = confidence_panel(cloud, "#000000", (-3.0, 9.0)).curves[-2:]
        assert (list(low.x_M), list(high.x_M)) == ([-2.0, 3.0], [3.0, 8.0])
        assert list(low.y_M) == pytest.approx([-2.0, 5.5])
        assert list(high.y_M) == pytest.approx([5.5, 8.0])

    def test_infinite_points_are_counted(self):
        arrays = self.arrays(100)
        arrays["y"][:7] = -np.inf
        assert sample(arrays, "p.npz", 3.0).dropped == 7

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"x": None}, "no array 'x'"),
            ({"y": np.zeros(3)}, "lengths 20, 3, 20"),
            ({"who": np.full(20, 7)}, "other than 0, 1, 2, 3"),
            ({"x": np.array(["a"] * 20)}, "expected numbers"),
            ({"x": np.zeros((20, 2))}, "expected numbers"),
        ],
    )
    def test_damage_is_named(self, change, said):
        arrays = {**self.arrays(20), **change}
        arrays = {key: value for key, value in arrays.items() if value is not None}
        with pytest.raises(RunError, match=said):
            sample(arrays, "p.npz", 3.0)


def with_verdict(student: StudentAudit, verdict: Any) -> StudentAudit:
    splits = tuple(
        replace(split, exaggeration=replace(split.exaggeration, verdict=verdict))
        for split in student.audit.splits
    )
    return replace(student, audit=replace(student.audit, splits=splits))


def low_slope(student: StudentAudit) -> Estimate:
    return student.audit.splits[1].exaggeration.slope_low.ordinary


class TestSummary:
    def test_the_student_chosen_on_validation_comes_first(self):
        ((_, text),) = accuracy_summary(validated({"offline τ=4": 0.9}))
        assert text.startswith(
            "offline τ=4 has the highest mean validation accuracy of 4 students (90.00 %); it "
            "reaches a test accuracy of 86.83 ± 0.25 % (n = 3 seeds)."
        )

    def test_without_validation_no_student_comes_first(self):
        ((_, text),) = accuracy_summary(validated({"no KD": None}))
        assert text.startswith("No student was chosen: the run has no validation examples")
        assert (
            "lie between 85.00 and 88.37 %. Better than no KD, with an interval above 0: off"
            in text
        )

    def test_a_gain_that_excludes_zero(self):
        ((_, text),) = accuracy_summary(study())
        assert text.startswith("online τ=4 has the highest mean validation accuracy of 4 students")
        assert "an interval that excludes 0" in text
        assert "n = 3 seeds" in text

    def test_a_gain_that_includes_zero_claims_nothing(self):
        result = study()
        row = replace(result.rows[-1], gain=around(0.004, 0.01))
        ((_, text),) = accuracy_summary(replace(result, rows=(*result.rows[:2], row)))
        assert "do not show that it helps" in text

    def test_a_gain_without_an_interval_is_open(self):
        result = study()
        row = replace(result.rows[-1], gain=Estimate(0.03))
        ((_, text),) = accuracy_summary(replace(result, rows=(*result.rows[:2], row)))
        assert "is open" in text

    def test_harm_is_said(self):
        result = validated({"offline τ=1": 0.5})
        row = replace(result.rows[2], accuracy=around(0.8, 0.01), gain=around(-0.05, 0.01))
        ((_, text),) = accuracy_summary(replace(result, rows=(*result.rows[:2], row)))
        assert text.startswith("No supervision had a higher mean")
        assert "Worse than no KD, with an interval below 0: offline τ=1" in text

    def test_students_are_grouped_by_their_verdict(self):
        found, _ = confidence()
        verdicts = dict(zip(SLOPES, ("no", "undecided", "yes", "yes"), strict=True))
        students = [with_verdict(one, verdicts[one.student]) for one in found.students]
        (_, text), (_, gain) = confidence_summary(replace(found, students=tuple(students)))
        low = {one.student: slope(low_slope(one)) for one in students}
        assert text == (
            f"Yes: offline τ=4 (low slope {low['offline τ=4']}); online τ=4 (low slope "
            f"{low['online τ=4']}). Undecided: offline τ=1 (low slope {low['offline τ=1']}). "
            f"No: no KD (low slope {low['no KD']})."
        )
        assert gain.count("[") == 4

    def test_seeds_that_disagree_are_not_averaged_away(self):
        one, other = audited("online τ=4")[0], audited("online τ=4", seed=1)[0]
        pair = with_verdict(one, "yes"), with_verdict(other, "no")
        (_, text), _ = confidence_summary(Confidence(1, None, pair))
        low, high = sorted(low_slope(student).value for student in pair)
        assert text.startswith("The verdict differs between seeds: online τ=4 (low slope ")
        assert f"mean of 2 seeds from {low:.2f} to {high:.2f}" in text

    def test_nothing_measured_says_nothing(self):
        assert confidence_summary(None) == []

    def test_targets_are_ordered_early_and_late(self):
        ((_, text),) = complexity_summary((curves_of(),))
        assert text.startswith("By adjusted complexity at epoch 2:"), "epoch 0 is untrained"
        adjusted, gradient = text.split("By the gradient residual at epoch 2:")
        assert "online teacher" in gradient
        early, late = adjusted.split("At epoch 20:")
        assert re.search(r"random labels .* > .*dataset labels .* > online teacher", early)
        assert "dataset labels 1.20" in late
        assert "at 11 of the 11 epochs" in late

    def test_near_ties_are_called_equal(self):
        curves = curves_of()
        points = tuple(
            replace(point, value=value_of(1.0 + 0.001 * index, 1.0), gradient=None)
            for index, point in enumerate(curves.points[:4])
        )
        ((_, text),) = complexity_summary((replace(curves, points=points),))
        assert text.count("≈") == 3
        assert ">" not in text


class TestJson:
    def test_round_trip_keeps_the_result(self):
        result = study()
        assert from_json(StudyResult, to_json(result), "results.json") == result

    def test_round_trip_keeps_infinities(self):
        curves = curves_of()
        point = replace(curves.points[0], value=replace(curves.points[0].value, plain=float("inf")))
        infinite = replace(curves, points=(point,))
        read = from_json(ComplexityCurves, to_json(infinite), "record.json")
        assert read == infinite
        assert render(contents(complexity=(read,)))

    @pytest.mark.parametrize(
        "damage", [lambda text: text[:-40], lambda text: "[]", lambda text: ""]
    )
    def test_damage_is_a_run_error(self, damage):
        with pytest.raises(RunError, match="results"):
            from_json(StudyResult, damage(to_json(study())), "results.json")
