"""The kernel analysis: similarity of the tangent kernels of students and their teacher.

Source: Harutyunyan et al., ICLR 2023, arXiv 2301.12245, eq. 12 (NTK similarity).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from scipy import stats
from torch import nn

from distillens.analyses.finished import FinishedRun, FinishedStudent
from distillens.analyses.registry import Analysis, Measured, register_analysis
from distillens.analyses.selection import RANDOM_SEED, first_seeds
from distillens.data import Batches
from distillens.kernel import centred_ntk_alignment, ntk_similarity
from distillens.measures.statistics.intervals import LEVEL
from distillens.results.base import SCHEMA, Estimate, Interval
from distillens.results.confidence import KernelLikeness, Kernels, StudentKernels
from distillens.study.networks import weights_digest


class KernelSettings(BaseModel):
    """Settings of the kernel analysis."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    examples: int = Field(default=64, ge=2)
    """Number of test examples."""
    probes: int = Field(default=16, ge=2)
    """Number of random vectors that the kernels are multiplied with."""


def measure_kernels(
    run: FinishedRun, students: Sequence[FinishedStudent], settings: KernelSettings
) -> Measured:
    """Compare the kernels of students and their teacher at the last epochs, on test inputs.

    The student trained on labels with the same seed is measured too, as a reference.

    Raises
    ------
    CheckpointError
        A checkpoint is not the one that the run's numbers describe.
    """
    teacher = run.teacher.network()
    if teacher is None:
        note = "the teacher is known by its logits alone, so kernels were not compared"
        return Measured(Kernels(SCHEMA, (), (note,)))
    teacher = run.context.on_student_inputs(teacher)
    found = []
    references: dict[int, KernelLikeness] = {}
    for student in students:
        likenesses = [_likeness(run, student, teacher, "student", settings)]
        reference = run.one_hot(student)
        if reference is not None:
            seed = reference.cell.seed
            # Several students share the reference of their seed.
            if seed not in references:
                references[seed] = _likeness(run, reference, teacher, "one-hot student", settings)
            likenesses.append(references[seed])
        entry = student.entry
        found.append(StudentKernels(entry.title, entry.kind, student.cell.seed, tuple(likenesses)))
    return Measured(Kernels(SCHEMA, tuple(found)))


def _likeness(
    run: FinishedRun,
    student: FinishedStudent,
    teacher: nn.Module,
    who: Literal["student", "one-hot student"],
    settings: KernelSettings,
) -> KernelLikeness:
    context, last = run.context, student.cell.epochs
    weights_digest(student.files, last, student.cell.weights_digest)
    network = context.load(run.recipe.student.model, student.files, last)
    test = context.splits.test
    count = min(settings.examples, len(test))
    sampled = np.random.default_rng(RANDOM_SEED).permutation(len(test))[:count]
    batches = Batches(
        test.take(np.sort(sampled)), count, normalisation=context.normalisation_of("student"),
        seed=None, device=context.accelerator.device,
    )  # fmt: skip
    inputs = next(iter(batches.epoch(0))).inputs
    estimates = {}
    for name, measured in (
        ("ntk_similarity", ntk_similarity),
        ("centred_alignment", centred_ntk_alignment),
    ):
        found = measured(
            network,
            teacher,
            inputs,
            probes=settings.probes,
            seed=RANDOM_SEED,
            progress=context.progress,
        )
        estimates[name] = _estimate(found.value, found.standard_error, settings.probes)
    return KernelLikeness(
        who=who, split="test", examples=count, probes=settings.probes, **estimates
    )


def _estimate(value: float, error: float | None, probes: int) -> Estimate:
    if error is None:
        return Estimate(value)
    half = float(stats.t.ppf(0.5 + LEVEL / 2, probes - 1)) * error
    method = f"Student t over {probes} probes, on the same examples"
    return Estimate(value, Interval(value - half, value + half, LEVEL, method))


register_analysis(
    Analysis(
        name="kernels",
        summary="Similarity of the tangent kernels of students and teacher.",
        settings=KernelSettings,
        result=Kernels,
        measure=measure_kernels,
        choose=first_seeds,
    )
)
