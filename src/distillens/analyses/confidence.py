"""Audit the students of a finished run: at the end, on the way there, and by their kernels.

Source: Nagarajan et al., NeurIPS 2023, arXiv 2301.12923 (the deviation plot at checkpoints, loss
switching); Harutyunyan et al., ICLR 2023, arXiv 2301.12245, eq. 12 (NTK similarity). Shapes: N
examples, C classes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from distillens.analyses.finished import (
    SPLITS,
    FinishedRun,
    FinishedStudent,
    as_outputs,
    described,
    finished_run,
)
from distillens.data import Batches
from distillens.errors import CheckpointError, RecipeError, RunError, nearest
from distillens.kernel import centred_ntk_alignment, ntk_similarity
from distillens.measures.confidence import Watch, audit_with_points
from distillens.measures.confidence.points import Points
from distillens.measures.statistics.intervals import LEVEL
from distillens.models import ModelRecipe
from distillens.progress import Progress, silent
from distillens.results.base import SCHEMA, Estimate, Interval
from distillens.results.confidence import (
    KernelLikeness,
    OverTraining,
    RunAudit,
    StudentAudit,
    Switch,
    TrajectoryPoint,
)
from distillens.runs.folder import find_run
from distillens.runs.layout import slug
from distillens.runs.read import read_data, read_result
from distillens.study.networks import network_logits, read_cell, weights_digest
from distillens.study.reading import read_recipe
from distillens.supervision.kinds.switched import SwitchedRecipe
from distillens.training import predict

OVER_TRAINING = 2_000
"""Examples of a split at which checkpoints are looked at, unless said otherwise."""
KERNEL_EXAMPLES = 64
PROBES = 16

_STORED_TOLERANCE = 1e-2
"""Between a checkpoint and the logits that the run stored, perhaps on a GPU with 10-bit products."""
_SEED = 0
"""Of the examples drawn and of the bootstrap."""


@dataclass(frozen=True, eq=False)
class _Wanted:
    """What to look at beside the ends."""

    run: FinishedRun
    over_training: int
    kernel_examples: int
    resamples: int
    progress: Progress
    likenesses: dict[int, KernelLikeness] = field(default_factory=dict)
    """Of one-hot students, by seed: several students share one."""


def audit_run(
    folder: str | Path,
    *,
    student: str | None = None,
    seed: int | None = None,
    other_teacher_run: str | Path | None = None,
    over_training: int = OVER_TRAINING,
    kernel_examples: int = KERNEL_EXAMPLES,
    resamples: int = 1000,
    trust_code: bool = False,
    progress: Progress = silent,
) -> tuple[RunAudit, tuple[dict[str, Points], ...]]:
    """Audit students of a finished run against its teacher, on train and test.

    References are the one-hot student of the same seed, where the run has one, and the teacher of
    another run. Who is right is judged by true labels, also where the recipe changed some of them.

    Parameters
    ----------
    folder
        The run folder.
    student
        A supervision's name in the recipe, or its short form; None for all.
    seed
        None takes the first seed of each supervision.
    other_teacher_run
        A run on the same data whose teacher is the same model with another seed.
    over_training
        How many examples of each split the checkpoints are looked at on; 0 leaves that out.
    kernel_examples
        How many test examples the kernels are compared on; 0 leaves that out.
    resamples
        Of the bootstrap.
    trust_code, progress
        As for `distillens.run`.

    Returns
    -------
    tuple
        The audit, and for each of its students the points of the confidence plot by split.

    Raises
    ------
    RunError
        The run is not finished, lacks checkpoints, or its data or the other run do not fit.
    RecipeError
        It has no such student or seed.
    CheckpointError
        A checkpoint is not the one that the run's numbers describe.
    """
    began = time.perf_counter()
    for name, count in (("over_training", over_training), ("kernel_examples", kernel_examples)):
        if count < 0 or count == 1:
            raise RecipeError(f"{name} is {count}; give 0 to leave it out, or 2 or more examples")
    run = finished_run(Path(folder), trust_code=trust_code, progress=progress)
    chosen = _choose(run, student, seed)
    other_name, other = None, None
    if other_teacher_run is not None:
        other_name, other = _other_teacher(run, Path(other_teacher_run), trust_code)
    wanted = _Wanted(run, over_training, kernel_examples, resamples, progress)
    audits, plotted = [], []
    for one in chosen:
        audit, points = _audit_student(wanted, one, other)
        audits.append(audit)
        plotted.append(points)
    result = RunAudit(
        schema_version=SCHEMA,
        run=run.recipe.name,
        data_fingerprint=run.scene.splits.fingerprint,
        teacher_digest=run.teacher.cell.weights_digest,
        other_teacher=other_name,
        students=tuple(audits),
        version=audits[0].audit.version,
        seconds=time.perf_counter() - began,
    )
    return result, tuple(plotted)


def _choose(run: FinishedRun, student: str | None, seed: int | None) -> list[FinishedStudent]:
    titles = dict.fromkeys(one.entry.title for one in run.students)
    if student is not None and student not in titles:
        # A shell has no key for τ; the short form of the run folder's names will do.
        named = next((title for title in titles if slug(title) == student), None)
        if named is None:
            raise RecipeError(f"the run has no student {student!r}{nearest(student, titles)}")
        student = named
    found = [
        next(one for one in run.students if one.entry.title == title)
        for title in titles
        if student in (None, title)
    ]
    if seed is None:
        return found
    found = [
        one for one in run.students if one.cell.seed == seed and student in (None, one.entry.title)
    ]
    if not found:
        what = "no student" if student is None else f"{student!r} has no network"
        seeds = sorted(
            {one.cell.seed for one in run.students if student in (None, one.entry.title)}
        )
        raise RecipeError(f"{what} of seed {seed}; there are {', '.join(map(str, seeds))}")
    return found


def _other_teacher(
    run: FinishedRun, folder: Path, trust_code: bool
) -> tuple[str, dict[str, NDArray]]:
    """Return the name of another run and what its teacher says of the same examples."""
    other = find_run(folder)
    recipe = read_recipe(other.recipe, trust_code=trust_code)
    if recipe.teacher.training is None or not other.teacher.cell.is_file():
        raise RunError(f"{folder} has no trained teacher of its own; name the run that trained it")
    found, here = read_data(other)["fingerprint"], run.scene.splits.fingerprint
    if found != here:
        raise RunError(
            f"the teacher of {folder} saw other data: fingerprint {str(found)[:12]}, here "
            f"{here[:12]}; give a run with the same data recipe"
        )
    if _values(recipe.teacher.model) != _values(run.teacher.model):
        raise RunError(
            f"the teacher of {folder} is {_words(recipe.teacher.model)}, this run's "
            f"{_words(run.teacher.model)}; as a reference it must differ in its seed alone"
        )
    if read_cell(other.teacher).weights_digest == run.teacher.cell.weights_digest:
        raise RunError(
            f"the teacher of {folder} is this run's own teacher; give a run with another teacher.seed"
        )
    logits = network_logits(other.teacher)
    return read_result(other).name, {split: logits[split] for split in SPLITS}


def _values(model: ModelRecipe | None) -> dict[str, object] | None:
    return None if model is None else model.model_dump()


def _words(model: ModelRecipe | None) -> str:
    return "known by its logits alone" if model is None else described(model)


def _audit_student(
    wanted: _Wanted, student: FinishedStudent, other: dict[str, NDArray] | None
) -> tuple[StudentAudit, dict[str, Points]]:
    run = wanted.run
    roles = run.roles(student, other)
    audit, points = audit_with_points(roles, kind=run.kinds(), resamples=wanted.resamples)
    notes = list(run.notes())
    over_training = None
    if wanted.over_training:
        over_training, more = _over_training(wanted, student)
        notes += more
    kernels: tuple[KernelLikeness, ...] = ()
    if wanted.kernel_examples and run.teacher.model is None:
        notes.append("the teacher is known by its logits alone, so kernels were not compared")
    elif wanted.kernel_examples:
        kernels = _kernels(wanted, student)
    result = StudentAudit(
        student.entry.title, student.entry.kind, student.cell.seed, audit, over_training, kernels,
        tuple(notes),
    )  # fmt: skip
    return result, points


def _over_training(wanted: _Wanted, student: FinishedStudent) -> tuple[OverTraining, list[str]]:
    """Look at every checkpoint on some examples of each split."""
    run, files = wanted.run, student.files
    scene, model = run.scene, run.recipe.student.model
    last = student.cell.epochs
    epochs = files.epochs()
    if last not in epochs:
        raise RunError(
            f"{files.folder} has no checkpoint of epoch {last} (it has {len(epochs)} others); "
            "leave the way there out with --over-training 0, or run the recipe in another --out"
        )
    weights_digest(files, last, student.cell.weights_digest)
    notes = []
    kept = run.recipe.training_of(student.entry).kept_epochs
    if missing := sorted(set(kept) - set(epochs)):
        told = ", ".join(str(epoch) for epoch in missing)
        notes.append(f"checkpoints of epochs {told} are missing and were left out over training")
    rng = np.random.default_rng(_SEED)
    rows, watches = {}, {}
    for split in SPLITS:
        count = len(getattr(scene.splits, split))
        rows[split] = np.sort(rng.permutation(count)[: wanted.over_training])
        given_N, true_N = run.given_labels(split)[rows[split]], run.true_labels(split)[rows[split]]
        watches[split] = Watch(
            split,
            run.teacher.logits(split)[rows[split]],
            true_N,
            given_N if (given_N != true_N).any() else None,
            run.student_kind,
            wanted.resamples,
            _SEED,
        )
    points: list[TrajectoryPoint] = []
    title = f"over training: {student.entry.title}, seed {student.cell.seed}"
    with wanted.progress(title, len(epochs)) as advance:
        for epoch in epochs:
            network = scene.load(model, files, epoch)
            for split, watch in watches.items():
                examples = getattr(scene.splits, split).take(rows[split])
                outputs = predict(
                    network,
                    examples,
                    scene.normalisation_of("student"),
                    device=scene.accelerator.device,
                )
                if epoch == last:
                    _check_stored(student, outputs, network_logits(files)[split][rows[split]])
                points.append(watch.look(epoch, as_outputs(outputs, run.student_kind)))
            advance(1)
    switch = _switch(run, student)
    changes = () if switch is None else tuple(
        change for watch in watches.values() for change in watch.changes(switch)
    )  # fmt: skip
    examples = {split: len(chosen) for split, chosen in rows.items()}
    return OverTraining(examples, tuple(points), switch, changes), notes


def _check_stored(student: FinishedStudent, found: NDArray, stored: NDArray) -> None:
    apart = float(np.abs(found - stored).max()) / max(1.0, float(np.abs(stored).max()))
    if not apart <= _STORED_TOLERANCE:
        raise CheckpointError(
            f"the last checkpoint of {student.files.folder} gives other outputs than the run stored "
            f"(by {apart:.2g} of the largest); one of the two was changed, so run it again"
        )


def _switch(run: FinishedRun, student: FinishedStudent) -> Switch | None:
    entry, training = student.entry, run.recipe.training_of(student.entry)
    if not isinstance(entry, SwitchedRecipe):
        return None
    each = len(run.scene.batches(training, 0))
    step = entry.step(training.epochs * each)
    return Switch(entry.first.title, entry.then.title, step / each, (step + entry.window) / each)


def _kernels(wanted: _Wanted, student: FinishedStudent) -> tuple[KernelLikeness, ...]:
    own = _likeness(wanted, student, "student")
    reference = wanted.run.one_hot(student)
    if reference is None:
        return (own,)
    seed = reference.cell.seed
    if seed not in wanted.likenesses:
        wanted.likenesses[seed] = _likeness(wanted, reference, "one-hot student")
    return (own, wanted.likenesses[seed])


def _likeness(
    wanted: _Wanted, student: FinishedStudent, who: Literal["student", "one-hot student"]
) -> KernelLikeness:
    """Compare a student's kernel with its teacher's at their last epochs, on test inputs."""
    run, scene = wanted.run, wanted.run.scene
    last = student.cell.epochs
    weights_digest(student.files, last, student.cell.weights_digest)
    network = scene.load(run.recipe.student.model, student.files, last)
    teacher = run.teacher.network()
    assert teacher is not None  # one that is known by its logits alone is not compared
    teacher = scene.on_student_inputs(teacher)
    count = min(wanted.kernel_examples, len(scene.splits.test))
    drawn = np.random.default_rng(_SEED).permutation(len(scene.splits.test))[:count]
    examples = scene.splits.test.take(np.sort(drawn))
    batches = Batches(
        examples, count, normalisation=scene.normalisation_of("student"), seed=None,
        device=scene.accelerator.device,
    )  # fmt: skip
    inputs = next(iter(batches.epoch(0))).inputs
    similarity = ntk_similarity(
        network, teacher, inputs, probes=PROBES, seed=_SEED, progress=wanted.progress
    )
    alignment = centred_ntk_alignment(
        network, teacher, inputs, probes=PROBES, seed=_SEED, progress=wanted.progress
    )
    return KernelLikeness(
        who=who,
        split="test",
        examples=count,
        ntk_similarity=_estimate(similarity.value, similarity.standard_error),
        centred_alignment=_estimate(alignment.value, alignment.standard_error),
        probes=PROBES,
    )


def _estimate(value: float, error: float | None) -> Estimate:
    if error is None:
        return Estimate(value)
    half = float(stats.t.ppf(0.5 + LEVEL / 2, PROBES - 1)) * error
    method = f"Student t over {PROBES} probes, on the same examples"
    return Estimate(value, Interval(value - half, value + half, LEVEL, method))
