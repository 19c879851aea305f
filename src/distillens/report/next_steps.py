"""What to do next with a run: commands that are ready to copy, with their time and purpose."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distillens.report.sections.ranking import ONE_HOT, TEACHER
from distillens.report.tables.text import fixed, plural
from distillens.report.verdict import MOST_SEEDS, Judgement, SeedRange, Verdict
from distillens.results.training import StudyResult

FIRST_SEEDS = 2
"""Further seeds that are proposed for a run with one seed, whose spread is not known."""


@dataclass(frozen=True)
class NextStep:
    """A command that would answer an open question about a run.

    Attributes
    ----------
    command
        A shell command.
    decides
        What the result of the command would decide, as a sentence.
    seconds
        Estimated time from the times of this run's own trainings; None if it trains nothing.
    """

    command: str
    decides: str
    seconds: float | None = None


def next_steps(
    result: StudyResult,
    found: Judgement,
    *,
    folder: Path,
    recipe: Path,
    values: Mapping[str, Any],
    analyses: Sequence[str] = (),
    unfinished_addition: bool = False,
) -> list[NextStep]:
    """Return what to do next, the most useful command first.

    Parameters
    ----------
    result
        Accuracies of the run.
    found
        The verdict on distillation.
    folder
        The run folder, as the commands name it.
    recipe
        The newest recipe of the run, to which seeds and supervisions are added.
    values
        The plain values of that recipe.
    analyses
        The names of the analyses that have been made.
    unfinished_addition
        Whether ``recipe`` is that of an addition whose networks are not all trained.

    Returns
    -------
    list of NextStep
        Empty if nothing is open.
    """
    if result.open_cells:
        return [_finish(result, folder, recipe)]
    if unfinished_addition:
        command = _line("distillens", "run", recipe, "--out", folder)
        return [NextStep(command, "Trains the networks of an addition that is not finished.")]
    language = values.get("kind") == "language"
    steps: list[NextStep] = []
    if found.labels is None and found.verdict is Verdict.CANNOT_BE_TOLD:
        steps += _add_labels(result, folder, recipe, values)
    if found.row is None and not result.validation_examples:
        steps += _add_validation(result, folder, recipe)
    if found.open and found.row is not None and found.labels is not None:
        steps += _add_seeds(result, found, folder, recipe, values)
    if found.verdict is not Verdict.HELPS and found.row is not None and result.tuning is None:
        steps += _tune(result, folder, recipe, values)
    helps = found.verdict in (Verdict.HELPS, Verdict.PROBABLY_HELPS)
    if helps and found.row is not None and not language:
        name = shlex.quote(found.row.name)
        steps.append(
            NextStep(
                _line("distillens", "export", folder, "--supervision") + f" {name}",
                f"Writes the weights of {found.row.name} and programs that run without distillens, "
                "and compares their outputs with those of this run.",
            )
        )
    # Of language models only the confidence is measured; complexity is that of a student of labels.
    excluded = {"complexity", "over-training"} if language else set()
    excluded |= {"complexity"} if found.labels is None else set()
    steps += [
        NextStep(_line("distillens", "measure", folder, analysis), decides)
        for analysis, decides in _ANALYSES.items()
        if analysis not in {*analyses, *excluded}
    ]
    if "--trust-code" not in result.provenance.command.split():
        return steps
    return [replace(step, command=f"{step.command} --trust-code") for step in steps]


_ANALYSES = {
    "confidence": "Shows where the students depart from their teacher, and whether that pays.",
    "complexity": "Shows how hard the labels and the teacher are for the student during training.",
    "over-training": "Shows at which epoch the students begin to depart from their teacher.",
}


def seeds_sentence(found: Judgement) -> str:
    """Return how many further seeds would decide, as a sentence; empty if seeds decide nothing."""
    if not found.open or found.row is None or found.labels is None:
        return ""
    needed = found.further_seeds
    if needed is None:
        return (
            f"The spread between seeds is not known yet; {FIRST_SEEDS} further seeds give a first "
            "estimate of it."
        )
    if needed.fewest is None:
        return (
            f"Further seeds alone do not decide: even {MOST_SEEDS:,} leave an interval that is too "
            "wide, because the number of test examples limits it. More test examples are needed."
        )
    mean = None if found.gain is None else 100 * found.gain.value
    verb = "decides" if needed.most == needed.fewest == 1 else "decide"
    return (
        f"If the mean gain stays at {fixed(mean, 1, signed=True)} points, {_range(needed)} {verb}."
    )


def _range(needed: SeedRange) -> str:
    if needed.most is None:
        return f"between {needed.fewest:,} and more than {MOST_SEEDS:,} further seeds"
    if needed.most == needed.fewest:
        return plural(needed.most, "further seed")
    return f"between {needed.fewest:,} and {needed.most:,} further seeds"


def _line(*words: object) -> str:
    return shlex.join(str(word) for word in words)


def _finish(result: StudyResult, folder: Path, recipe: Path) -> NextStep:
    times = [row.seconds for row in result.rows if row.kind != TEACHER]
    count = len(result.open_cells)
    return NextStep(
        _line("distillens", "run", recipe, "--out", folder),
        f"Trains the {plural(count, 'network')} that {'is' if count == 1 else 'are'} not trained yet.",
        count * sum(times) / len(times) if times else None,
    )


def _seconds_per_seed(result: StudyResult) -> float:
    return sum(row.seconds for row in result.rows if row.kind != TEACHER)


def _seconds_in_all(result: StudyResult) -> float:
    return sum(cell.seconds for cell in result.cells)


def _add_seeds(
    result: StudyResult,
    found: Judgement,
    folder: Path,
    recipe: Path,
    values: Mapping[str, Any],
) -> list[NextStep]:
    needed = found.further_seeds
    count = FIRST_SEEDS if needed is None else needed.likely
    # A supervision with seeds of its own does not follow those of the recipe.
    own_seeds = any(entry.get("seeds") for entry in values["supervisions"])
    if count is None or result.tuning is not None or found.row is None or own_seeds:
        return []
    seeds = [int(seed) for seed in values["seeds"]]
    more = [seed for seed in range(max(seeds) + count + 1) if seed not in seeds][:count]
    return [
        NextStep(
            _line("distillens", "run", recipe, f"seeds={[*seeds, *more]}", "--out", folder),
            f"Adds {plural(count, 'seed')} to this run and decides whether {found.row.name} helps, "
            f"if the spread between seeds is as estimated. {seeds_sentence(found)}",
            count * _seconds_per_seed(result),
        )
    ]


def _add_labels(
    result: StudyResult, folder: Path, recipe: Path, values: Mapping[str, Any]
) -> list[NextStep]:
    if result.tuning is not None:
        return []
    supervisions = [*values["supervisions"], {"kind": ONE_HOT}]
    rows = [row for row in result.rows if row.kind != TEACHER]
    return [
        NextStep(
            _line(
                "distillens",
                "run",
                recipe,
                f"supervisions={json.dumps(supervisions)}",
                "--out",
                folder,
            ),
            "Adds students trained on labels alone, so that the gain from distillation is known.",
            _seconds_per_seed(result) / len(rows) * len(rows[0].seeds) if rows else None,
        )
    ]


def _add_validation(result: StudyResult, folder: Path, recipe: Path) -> list[NextStep]:
    size = max(1, result.train_examples // 10)
    other = folder.with_name(f"{folder.name}-validation")
    return [
        NextStep(
            _line("distillens", "run", recipe, f"data.validation_size={size}", "--out", other),
            "Trains the run again with validation examples, by which a supervision can be selected.",
            _seconds_in_all(result),
        )
    ]


def _tune(
    result: StudyResult, folder: Path, recipe: Path, values: Mapping[str, Any]
) -> list[NextStep]:
    own_rates = any(
        "learning_rate" in (entry.get("training") or {}) for entry in values["supervisions"]
    )
    if not result.validation_examples or own_rates:
        return []
    rate = float(values["student"]["training"]["learning_rate"])
    rates = [float(f"{rate * factor:.3g}") for factor in (0.5, 1, 2, 4)]
    other = folder.with_name(f"{folder.name}-tuned")
    return [
        NextStep(
            _line("distillens", "run", recipe, f"tune={{learning_rate: {rates}}}", "--out", other),
            "Selects a learning rate for each supervision on validation examples, which decides whether "
            f"the shared rate {rate:g} is the reason.",
            _seconds_in_all(result) + len(rates) * _seconds_per_seed(result),
        )
    ]
