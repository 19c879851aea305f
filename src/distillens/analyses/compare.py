"""A comparison of finished runs: one row for each run and supervision, over seeds.

Source: Nagarajan et al., NeurIPS 2023, arXiv 2301.12923, whose table of settings it follows; the
intervals and verdicts are ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from distillens.analyses.confidence import ConfidenceSettings, measure_confidence
from distillens.analyses.finished import SPLITS, FinishedRun, described, finished_run
from distillens.errors import RunError
from distillens.measures.statistics.intervals import mean_of_estimates
from distillens.results.base import SCHEMA
from distillens.results.comparison import Setting, Settings, SettingSplit
from distillens.results.confidence import SplitAudit
from distillens.results.training import TEACHER
from distillens.study.recipe import Recipe


def compare(
    folders: Iterable[str | Path], *, resamples: int = 1000, trust_code: bool = False
) -> Settings:
    """Audit every student of finished runs at its last epoch, and take means over seeds.

    Parameters
    ----------
    folders
        Run folders; the other supervisions are compared with those of kind one-hot.
    resamples
        Number of bootstrap resamples.
    trust_code
        As for `distillens.run`.

    Raises
    ------
    RunError
        A folder is no finished run, or none of its students has a teacher.
    """
    found: list[Setting] = []
    notes: list[str] = []
    seen: set[Path] = set()
    for folder in folders:
        if (place := Path(folder).resolve()) in seen:
            raise RunError(f"{folder} was given twice; give each run once")
        seen.add(place)
        run = finished_run(Path(folder), trust_code=trust_code)
        lines = _settings_of(run, resamples)
        if not lines:
            raise RunError(f"{folder} has one-hot students only; a setting needs a teacher's")
        found += lines
        notes += [f"{run.recipe.name}: {note}" for note in run.notes()]
    return Settings(SCHEMA, tuple(found), tuple(dict.fromkeys(notes)))


def _settings_of(run: FinishedRun, resamples: int) -> list[Setting]:
    rows = {row.position: row for row in run.result.rows}
    labelled = [k for k, entry in enumerate(run.recipe.supervisions) if entry.is_baseline]
    one_hot = next((rows[k] for k in labelled if k in rows), None)
    found = []
    for position, entry in enumerate(run.recipe.supervisions):
        if entry.is_baseline:
            continue
        students = [student for student in run.students if student.entry is entry]
        asked = ConfidenceSettings(resamples=resamples, listed_departures=0)
        confidence = measure_confidence(run, students, asked).result
        if confidence.notes:
            raise RunError(f"{run.recipe.name}: {confidence.notes[0]}")
        audits = [each.audit for each in confidence.students]
        references = {read.role for audit in audits for read in audit.kinds}
        temperature = getattr(entry, "temperature", None)
        found.append(
            Setting(
                run=run.recipe.name,
                data=_data(run),
                teacher=described(run.teacher.model),
                student=described(run.recipe.student.model),
                supervision=entry.title,
                temperature=float(temperature) if isinstance(temperature, (int, float)) else None,
                seeds=tuple(student.cell.seed for student in students),
                teacher_accuracy=rows[TEACHER].accuracy,
                one_hot_accuracy=None if one_hot is None else one_hot.accuracy,
                accuracy=rows[position].accuracy,
                references=tuple(sorted(references - {"teacher", "student"})),
                splits=tuple(
                    _over_seeds(split, [audit.splits[place] for audit in audits])
                    for place, split in enumerate(SPLITS)
                ),
                teacher_digest=run.teacher.cell.weights_digest,
                digests=tuple(student.cell.weights_digest for student in students),
            )
        )
    return found


def _over_seeds(split: str, audits: Sequence[SplitAudit]) -> SettingSplit:
    return SettingSplit(
        split=split,
        slope_all=mean_of_estimates([audit.exaggeration.slope_all.ordinary for audit in audits]),
        slope_low=mean_of_estimates([audit.exaggeration.slope_low.ordinary for audit in audits]),
        underfit=mean_of_estimates(
            [audit.exaggeration.underfit.share for audit in audits], within=(0, 1)
        ),
        net_gain=mean_of_estimates(
            [audit.ledger.all.net_gain for audit in audits], within=(-100, 100)
        ),
        p_value=max(audit.ledger.all.p_value for audit in audits),
        verdicts=tuple(audit.exaggeration.verdict for audit in audits),
    )


def _data(run: FinishedRun) -> str:
    recipe: Recipe = run.recipe
    name = Path(recipe.data.path).name if recipe.data.path else recipe.data.source
    words = f"{name}, {run.result.train_examples:,} train"
    if run.result.changed_labels:
        share = run.result.changed_labels / run.result.train_examples
        words += f", {100 * share:.0f} % labels wrong"
    return words
