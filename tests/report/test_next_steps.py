"""What to do next: every command is valid, and its time comes from the times of the run."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from report_cases import validated

from distillens.report.next_steps import NextStep, next_steps, seeds_sentence
from distillens.report.verdict import SeedRange, judge
from distillens.results.base import Estimate, Interval
from distillens.results.training import StudyResult
from distillens.study.language_models.recipe import LanguageRecipe
from distillens.study.reading import read_recipe

MEANS = {"no KD": 0.9, "offline τ=1": 0.91, "offline τ=4": 0.85, "online τ=4": 0.8}
RECIPE = Path("recipes/digits.yaml")
VALUES = yaml.safe_load(Path(__file__).parents[2].joinpath(RECIPE).read_text(encoding="utf-8"))
VALUES["seeds"] = [0, 1, 2]


def with_gain(value: float, half: float) -> StudyResult:
    """The constructed study, with one gain and interval in percentage points for every supervision."""
    result = validated(MEANS)
    low, high = (value - half) / 100, (value + half) / 100
    gain = Estimate(value / 100, Interval(low, high, 0.95, "constructed"))
    rows = tuple(replace(row, gain=gain) if row.gain else row for row in result.rows)
    return replace(result, rows=rows)


def steps(result: StudyResult, folder: str = "runs/demo", **more: Any) -> list[NextStep]:
    return next_steps(
        result,
        judge(result),
        folder=Path(folder),
        recipe=Path(folder, "recipe.yaml"),
        values=VALUES,
        **more,
    )


def overrides(step: NextStep) -> list[str]:
    """The KEY=VALUE words of a command."""
    words = shlex.split(step.command)
    return [word for word in words if "=" in word]


def test_an_undecided_run_names_seeds_their_time_and_the_range() -> None:
    result = with_gain(1.0, 1.8)
    result = replace(result, cells=tuple(spread(result)))
    first = steps(result)[0]
    found = judge(result)
    assert found.further_seeds is not None
    count = found.further_seeds.likely
    assert count is not None
    per_seed = sum(row.seconds for row in result.rows if row.kind != "teacher")
    assert first.seconds == pytest.approx(count * per_seed)
    assert read_recipe(str(RECIPE), overrides(first)).seeds == tuple(range(3 + count))
    assert seeds_sentence(found) in first.decides
    assert f"{found.further_seeds.fewest:,}" in first.decides


def spread(result: StudyResult) -> list[Any]:
    """Test accuracies of offline τ=1 that differ from those of labels alone by 1 ± 0.7 points."""
    base = {cell.seed: cell.test_accuracy for cell in result.cells if cell.supervision == "no KD"}
    moved = {0: 0.003, 1: 0.010, 2: 0.017}
    return [
        replace(cell, test_accuracy=base[cell.seed] + moved[cell.seed])
        if cell.supervision == "offline τ=1"
        else cell
        for cell in result.cells
    ]


def test_one_seed_asks_for_two_more() -> None:
    result = with_gain(1.0, 0.5)
    result = replace(result, cells=tuple(cell for cell in result.cells if cell.seed == 0))
    found = judge(result)
    assert "not known" in seeds_sentence(found)
    assert overrides(steps(result)[0]) == ["seeds=[0, 1, 2, 3, 4]"]


def test_an_open_run_is_finished_first_and_nothing_else_is_proposed() -> None:
    result = replace(with_gain(1.0, 2.0), open_cells=("online τ=4, seed 2",))
    (only,) = steps(result)
    assert shlex.split(only.command) == [
        "distillens", "run", "runs/demo/recipe.yaml", "--out", "runs/demo",
    ]  # fmt: skip


def test_a_helpful_supervision_is_exported_and_gets_no_seeds() -> None:
    found = steps(with_gain(2.0, 1.0), analyses=("confidence", "complexity", "over-training"))
    (only,) = found
    assert shlex.split(only.command)[-2:] == ["--supervision", "offline τ=1"]


def test_without_labels_alone_the_command_adds_them() -> None:
    result = with_gain(2.0, 1.0)
    result = replace(
        result,
        rows=tuple(row for row in result.rows if row.name != "no KD"),
        cells=tuple(cell for cell in result.cells if cell.supervision != "no KD"),
    )
    values = {**VALUES, "supervisions": VALUES["supervisions"][1:]}
    step = next_steps(
        result, judge(result), folder=Path("r"), recipe=Path("r/recipe.yaml"), values=values
    )[0]
    (changed,) = overrides(step)
    kinds = [one["kind"] for one in json.loads(changed.removeprefix("supervisions="))]
    assert kinds == ["offline", "offline", "online", "online", "one-hot"]
    assert [one.kind for one in read_recipe(str(RECIPE), [changed]).supervisions] == kinds


def test_without_validation_the_command_asks_for_validation_examples() -> None:
    result = replace(validated(dict.fromkeys(MEANS)), validation_examples=0, train_examples=900)
    step = steps(result)[0]
    assert read_recipe(str(RECIPE), overrides(step)).data.validation_size == 90
    assert shlex.split(step.command)[-1] == "runs/demo-validation"


def test_a_shared_learning_rate_is_questioned_where_distillation_does_not_help() -> None:
    found = steps(with_gain(-2.0, 1.0))
    tune = next(step for step in found if "tune=" in step.command)
    parsed = read_recipe(str(RECIPE), overrides(tune)).tune
    assert parsed is not None
    rate = VALUES["student"]["training"]["learning_rate"]
    assert parsed.learning_rate == pytest.approx((rate / 2, rate, 2 * rate, 4 * rate))
    assert not any("seeds=" in step.command for step in found)


def test_a_folder_with_spaces_and_quotes_is_one_word_of_the_command() -> None:
    folder = "runs/a b'; rm -rf $HOME"
    for step in steps(with_gain(-2.0, 1.0), folder=folder):
        words = shlex.split(step.command)
        assert any(word.startswith(folder) for word in words)


@pytest.mark.parametrize(
    ("needed", "words"),
    [
        (SeedRange(2, 5, 40), "between 2 and 40 further seeds decide"),
        (SeedRange(2, 5, None), "between 2 and more than 1,000 further seeds decide"),
        (SeedRange(1, 1, 1), "1 further seed decides"),
        (SeedRange(None, None, None), "More test examples are needed"),
    ],
)
def test_the_number_of_seeds_is_a_range(needed: SeedRange, words: str) -> None:
    found = replace(judge(with_gain(1.0, 2.0)), further_seeds=needed)
    assert words in seeds_sentence(found)


def commands(result: StudyResult, values: dict[str, Any], **more: Any) -> list[str]:
    found = judge(result)
    made = next_steps(
        result, found, folder=Path("r"), recipe=Path("r/recipe.yaml"), values=values, **more
    )
    return [step.command for step in made]


@pytest.mark.parametrize("gain", [2.0, -2.0])
def test_a_run_of_language_models_gets_no_command_that_is_refused(gain: float) -> None:
    for command in commands(with_gain(gain, 1.0), {**VALUES, "kind": "language"}):
        assert not set(shlex.split(command)) & {*LanguageRecipe.unavailable}, command


def test_complexity_is_not_proposed_without_a_student_of_labels() -> None:
    result = with_gain(2.0, 1.0)
    assert any("complexity" in command for command in commands(result, VALUES))
    rows = tuple(row for row in result.rows if row.name != "no KD")
    assert not any(
        command.endswith("complexity") for command in commands(replace(result, rows=rows), VALUES)
    )


def test_supervisions_with_rates_or_seeds_of_their_own_get_no_command_that_ignores_them() -> None:
    own_rate = [
        *VALUES["supervisions"][:-1],
        {"kind": "offline", "training": {"learning_rate": 0.1}},
    ]
    values = {**VALUES, "supervisions": own_rate}
    assert not any("tune=" in command for command in commands(with_gain(-2.0, 1.0), values))
    undecided = replace(with_gain(1.0, 1.8), cells=tuple(spread(with_gain(1.0, 1.8))))
    own_seeds = {**VALUES, "supervisions": [*VALUES["supervisions"][:-1], {"seeds": [0]}]}
    assert any("seeds=" in command for command in commands(undecided, VALUES))
    assert not any("seeds=" in command for command in commands(undecided, own_seeds))


def test_an_unfinished_addition_is_finished_first() -> None:
    (only,) = commands(with_gain(1.0, 1.8), VALUES, unfinished_addition=True)
    assert shlex.split(only)[1:] == ["run", "r/recipe.yaml", "--out", "r"]


def test_commands_of_a_run_with_code_of_the_user_allow_it() -> None:
    result = with_gain(2.0, 1.0)
    made = replace(result.provenance, command="distillens run mine.yaml --trust-code")
    found = commands(replace(result, provenance=made), VALUES)
    assert found
    assert all(command.endswith(" --trust-code") for command in found)
    assert not any("--trust-code" in command for command in commands(result, VALUES))
