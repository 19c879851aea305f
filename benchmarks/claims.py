"""Apply the criteria of docs/claims.md to the runs that test them.

    python benchmarks/claims.py runs          # runs/cifar100-long, runs/cifar100-long-self, ...

Each run is looked for in the given folder under the name of its recipe, those of setting S3 as
cifar100-long-binary-<seed>. A run whose planned seeds are not complete gives preliminary numbers and the
verdict "not yet tested". Nothing is trained here; the audits of claim 3 read stored logits.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillens.analyses.finished import FinishedRun, finished_run
from distillens.data import load_splits
from distillens.measures import paired_gain
from distillens.measures.confidence import audit_with_points
from distillens.results.base import Estimate
from distillens.results.complexity import ComplexityCurves
from distillens.runs.folder import find_run
from distillens.runs.layout import Run
from distillens.runs.open import OpenRun
from distillens.study.networks import network_logits, read_cell
from distillens.study.reading import read_recipe
from distillens.training import is_right

HOLDS, IN_PART, FAILS, OPEN = "holds", "holds in part", "does not hold", "not yet tested"
TEMPERATURES_EPOCH = 13


@dataclass(frozen=True)
class Judged:
    """A claim with its verdict and the numbers that it rests on."""

    claim: str
    setting: str
    verdict: str
    numbers: str


@dataclass(frozen=True)
class Students:
    """The complete students of a run that may still be in progress, by supervision and seed."""

    planned: int
    teacher: float
    right: Mapping[str, Mapping[int, NDArray[np.bool_]]]
    """Which test examples a student classifies correctly, (N,)."""

    @classmethod
    def of(cls, folder: Path) -> Students:
        """Read what is complete of a run."""
        run = find_run(folder)
        recipe = read_recipe(run.recipe)
        labels = load_splits(recipe.data).test.labels.numpy()
        right: dict[str, dict[int, NDArray[np.bool_]]] = {}
        for place, entry in enumerate(recipe.supervisions):
            hits = right.setdefault(entry.title, {})
            for seed in recipe.seeds_of(entry):
                files = run.student(place, entry.title, seed)
                if files.cell.is_file():
                    hits[seed] = is_right(network_logits(files)["test"], labels)
        cell = run.teacher.cell
        teacher = read_cell(run.teacher).test_accuracy if cell.is_file() else float("nan")
        return cls(len(recipe.seeds), teacher, right)

    def seeds(self, *names: str) -> list[int]:
        """Return the seeds that all of these supervisions have."""
        shared = [set(self.right.get(name, {})) for name in names]
        return sorted(set.intersection(*shared))

    def accuracy(self, name: str) -> float:
        """Return the mean test accuracy of a supervision over its complete seeds."""
        return float(np.mean([hits.mean() for hits in self.right[name].values()]))

    def gain(self, better: str, than: str) -> Estimate | None:
        """Return the paired difference of two supervisions over the seeds that both have."""
        seeds = self.seeds(better, than)
        if not seeds:
            return None
        first = [self.right[better][seed].astype(float) for seed in seeds]
        second = [self.right[than][seed].astype(float) for seed in seeds]
        return paired_gain(
            [float(each.mean()) for each in first],
            [float(each.mean()) for each in second],
            differences_N=np.mean(np.subtract(first, second), axis=0),
        )


def above_zero(gain: Estimate) -> bool:
    """Say whether the whole interval is above 0."""
    return gain.interval is not None and gain.interval.low > 0


def shown(gain: Estimate | None) -> str:
    """Return a difference in points with its interval."""
    if gain is None or gain.interval is None:
        return "–"
    low, high = 100 * gain.interval.low, 100 * gain.interval.high
    return f"{100 * gain.value:+.2f} [{low:+.2f}, {high:+.2f}]".replace("-", "−")


def order_verdict(online: Estimate, offline: Estimate, online_over_labels: Estimate) -> str:
    """Judge claim 1 from online − offline, offline − labels alone and online − labels alone."""
    both = (online, offline)
    if all(above_zero(gain) for gain in both):
        return HOLDS
    positive = [gain.value > 0 for gain in both]
    if all(positive) and any(above_zero(gain) for gain in both):
        return IN_PART
    return IN_PART if not all(positive) and above_zero(online_over_labels) else FAILS


def judge_order(students: Students, setting: str) -> list[Judged]:
    """Judge claims 1a and 1b of one setting."""
    found = []
    for claim, tau in (("1a", 4), ("1b", 1)):
        online, offline = f"online τ={tau}", f"offline τ={tau}"
        gains = [
            students.gain(online, offline),
            students.gain(offline, "no KD"),
            students.gain(online, "no KD"),
        ]
        seeds = students.seeds(online, offline, "no KD")
        numbers = (
            f"online − offline {shown(gains[0])}, offline − labels alone {shown(gains[1])}, "
            f"online − labels alone {shown(gains[2])}; {len(seeds)} of {students.planned} seeds"
        )
        verdict = OPEN
        complete = [gain for gain in gains if gain is not None]
        if len(seeds) == students.planned and len(complete) == 3:
            verdict = order_verdict(*complete)
        found.append(Judged(claim, setting, verdict, numbers))
    return found


def values_of(curves: ComplexityCurves, targets: str) -> dict[int, float]:
    """Return the adjusted complexity of targets by epoch."""
    points = [point for point in curves.points if point.targets == targets]
    return {p.epoch: p.value.adjusted for p in points if p.value.adjusted is not None}


def share_below(curves: ComplexityCurves) -> float:
    """Return the share of epochs before the last at which the online teacher's targets are simpler."""
    online, final = values_of(curves, "online teacher"), values_of(curves, "final teacher")
    epochs = sorted(online)[:-1]
    return float(np.mean([online[epoch] < final[epoch] for epoch in epochs]))


def rises(curves: ComplexityCurves, targets: str) -> bool:
    """Say whether complexity at the last epoch is at least 5 % above its lowest earlier value."""
    values = values_of(curves, targets)
    *earlier, last = (values[epoch] for epoch in sorted(values))
    return last >= 1.05 * min(earlier)


def falls(curves: ComplexityCurves) -> tuple[bool, bool]:
    """Say whether plain and normalised adjusted* complexity decrease with every temperature."""
    points = sorted(curves.temperatures, key=lambda point: point.temperature)
    plain = [point.value.plain for point in points]
    normalised = [point.value.normalised_star for point in points]
    return bool((np.diff(plain) < 0).all()), bool((np.diff(normalised) < 0).all())


def judge_complexity(
    training: Sequence[ComplexityCurves], temperatures: Sequence[ComplexityCurves], planned: int
) -> list[Judged]:
    """Judge claims 2a, 2b and 2c from one set of curves a seed."""
    enough = len(training) == planned
    shares = [share_below(curves) for curves in training]
    rise = {name: [rises(each, name) for each in training] for name in ("labels", "final teacher")}
    fall = [falls(curves) for curves in temperatures]
    a = b = c = OPEN
    if enough:
        a = HOLDS if min(shares) >= 0.75 else IN_PART if min(shares) >= 0.5 else FAILS
        count = sum(all(each) for each in rise.values())
        b = (FAILS, IN_PART, HOLDS)[count]
    if len(fall) == planned:
        c = FAILS
        if all(plain for plain, _ in fall):
            c = HOLDS if all(normalised for _, normalised in fall) else IN_PART
    listed = ", ".join(f"{100 * share:.0f} %" for share in shares) or "–"
    rose = "; ".join(f"{name}: {sum(each)} of {len(each)} seeds" for name, each in rise.items())
    return [
        Judged("2a", "S3", a, f"share of epochs by seed: {listed}"),
        Judged("2b", "S3", b, f"a rise of {rose}"),
        Judged(
            "2c",
            "S3",
            c,
            f"YᵀK⁻¹Y decreases in {sum(p for p, _ in fall)}, the normalised value in "
            f"{sum(n for _, n in fall)} of {len(fall)} seeds",
        ),
    ]


@dataclass(frozen=True)
class Case:
    """One setting and split of claim 3."""

    name: str
    split: str
    exaggerates: bool
    underfits: bool


def audits_of(run: FinishedRun, supervision: str) -> list[Any]:
    """Return the audits of a supervision's students, one for each seed."""
    return [
        audit_with_points(run.roles(each), kind=run.kinds(), resamples=1000, listed_departures=0)[0]
        for each in run.students
        if each.entry.title == supervision
    ]


def cases_of(run: FinishedRun, supervision: str) -> list[Case]:
    """Return the two cases of claim 3 that a finished run decides."""
    audits = audits_of(run, supervision)
    found = []
    for place, split in enumerate(("train", "test")):
        splits = [audit.splits[place] for audit in audits]
        verdicts = [each.exaggeration.verdict for each in splits]
        exaggerates = verdicts.count("yes") * 3 >= 2 * len(verdicts)
        name = f"{run.recipe.name}, {supervision}"
        found.append(Case(name, split, exaggerates, all(map(underfits, splits))))
    return found


def underfits(split: Any) -> bool:
    """Say whether a student underfits where the teacher is unsure, more than one trained on labels."""
    found = split.exaggeration.underfit
    labels = next(one for one in found.references if one.name == "one-hot student")
    interval = found.share.interval
    return interval is not None and interval.low > 0.5 and found.share.value > labels.share.value


def over_teacher(run: FinishedRun, students: Students, supervision: str) -> Estimate:
    """Return the paired difference of a supervision's students and their teacher."""
    labels = run.true_labels("test")
    teacher = is_right(run.teacher.logits("test"), labels).astype(float)
    mine = [hits.astype(float) for hits in students.right[supervision].values()]
    return paired_gain(
        [float(each.mean()) for each in mine],
        [float(teacher.mean())] * len(mine),
        differences_N=np.mean(mine, axis=0) - teacher,
    )


def judge_confidence(cases: Sequence[Case]) -> list[Judged]:
    """Judge claims 3a and 3b from all six cases."""
    exaggerated = sum(case.exaggerates for case in cases)
    test = sum(case.underfits for case in cases if case.split == "test")
    train = sum(case.underfits for case in cases if case.split == "train")
    a = b = OPEN
    if len(cases) == 6:
        a = HOLDS if exaggerated >= 5 else IN_PART if exaggerated >= 2 else FAILS
        b = HOLDS if test == 3 and train >= 2 else IN_PART if test + train >= 3 else FAILS
    return [
        Judged("3a", "S4, S5, S1", a, f"{exaggerated} of {len(cases)} cases"),
        Judged("3b", "S4, S5, S1", b, f"test {test}, train {train} of {len(cases)} cases"),
    ]


def judge_gain(by_setting: Mapping[str, tuple[Estimate, Estimate]], planned: int) -> Judged:
    """Judge claim 3c from offline − labels alone and offline − teacher of each setting."""
    verdict = OPEN
    if len(by_setting) == planned:
        labels = [above_zero(gain) for gain, _ in by_setting.values()]
        teacher = [above_zero(gain) for _, gain in by_setting.values()]
        verdict = HOLDS if all(labels + teacher) else IN_PART if any(labels) else FAILS
    numbers = "; ".join(
        f"{name}: {shown(gain)} to labels alone, {shown(over)} to the teacher"
        for name, (gain, over) in by_setting.items()
    )
    return Judged("3c", "S4, S5", verdict, numbers or "–")


def judge_period(students: Students, names: Sequence[str]) -> Judged:
    """Judge claim 5; ``names`` go from the shortest period to the longest."""
    whole = students.gain(names[0], names[-1])
    verdict, numbers = OPEN, "–"
    if whole is not None and all(students.right[name] for name in names):
        steps = [students.gain(longer, shorter) for shorter, longer in pairwise(names)]
        level = all(
            step is not None and step.interval is not None
            and step.value <= (step.interval.high - step.interval.low) / 2
            for step in steps
        )  # fmt: skip
        verdict = FAILS
        if above_zero(whole):
            verdict = HOLDS if level else IN_PART
        accuracies = ", ".join(f"{100 * students.accuracy(name):.1f}" for name in names)
        numbers = f"{accuracies} %; every epoch − rarest {shown(whole)}"
    return Judged("5", "S6", verdict, numbers)


def judge_switching(
    base: Students, switched: Students, to_teacher: str, to_labels: str, repaired: bool | None
) -> Judged:
    """Judge claim 6; ``repaired`` says whether ending on labels lowers the underfit share."""
    gain = base.gain("offline τ=4", "no KD")
    if gain is None or repaired is None or not all(
        switched.right[name] for name in (to_teacher, to_labels)
    ):  # fmt: skip
        return Judged("6", "S7", OPEN, "–")
    if not above_zero(gain):
        return Judged("6", "S7", OPEN, f"offline − labels alone {shown(gain)}: no gain to keep")
    alone = float(base.right["no KD"][0].mean())
    kept = {
        name: (switched.accuracy(name) - alone) / gain.value for name in (to_teacher, to_labels)
    }
    half = [share >= 0.5 for share in kept.values()]
    verdict = HOLDS if all(half) and repaired else IN_PART if any(half) else FAILS
    numbers = ", ".join(f"{name} keeps {100 * share:.0f} %" for name, share in kept.items())
    return Judged("6", "S7", verdict, f"{numbers}; underfit share lower: {repaired}")


def complexity_curves(folder: Path) -> list[ComplexityCurves]:
    """Return the complexity curves of all records of a run."""
    records = OpenRun.open(folder, unfinished=True).records("complexity")
    return [record.result(ComplexityCurves) for record in records]


def is_finished(folder: Path) -> bool:
    """Say whether a run has results, and none of its networks is open."""
    return folder.is_dir() and Run(folder).results.is_file() and not _open(Students.of(folder))


def _open(students: Students) -> bool:
    return any(len(seeds) < students.planned for seeds in students.right.values())


def judge_complexity_runs(runs: Path) -> list[Judged]:
    """Judge claim 2 from the runs of S3, one for each seed."""
    folders = sorted(runs.glob("cifar100-long-binary-*"))
    curves = [one for folder in folders for one in complexity_curves(folder)]
    training = [one for one in curves if len(values_of(one, "labels")) > 2]
    cooled = [
        one
        for one in curves
        if one.temperatures and one.temperatures[0].epoch == TEMPERATURES_EPOCH
    ]
    return judge_complexity(training, cooled, 3) if training else []


def judge_confidence_runs(runs: Path) -> list[Judged]:
    """Judge claim 3 from the finished runs of S4, S5 and S1."""
    cases: list[Case] = []
    gains: dict[str, tuple[Estimate, Estimate]] = {}
    for name in ("cifar100-long-self", "cifar100-long-self-noisy", "cifar100-long"):
        if not is_finished(runs / name):
            continue
        run, students = finished_run(runs / name), Students.of(runs / name)
        cases += cases_of(run, "offline τ=4")
        gain = students.gain("offline τ=4", "no KD")
        if name != "cifar100-long" and gain is not None:
            gains[name] = (gain, over_teacher(run, students, "offline τ=4"))
    return [*judge_confidence(cases), judge_gain(gains, 2)] if cases else []


def judge_switching_run(runs: Path) -> list[Judged]:
    """Judge claim 6 from the runs of S7 and S1."""
    mine, long = runs / "cifar100-long-switching", runs / "cifar100-long"
    if not (is_finished(mine) and is_finished(long)):
        return []
    run = finished_run(mine)
    names = [entry.title for entry in run.recipe.supervisions]
    shares = [
        audits_of(each, name)[0].splits[1].exaggeration.underfit.share.value
        for each, name in ((run, names[1]), (finished_run(long), "offline τ=4"))
    ]
    return [
        judge_switching(
            Students.of(long), Students.of(mine), names[0], names[1], shares[0] < shares[1]
        )
    ]


def judge_all(runs: Path) -> list[Judged]:
    """Judge all claims whose runs are in a folder."""
    found: list[Judged] = []
    if (runs / "cifar100-long").is_dir():
        found += judge_order(Students.of(runs / "cifar100-long"), "S1")
    found += judge_complexity_runs(runs)
    found += judge_confidence_runs(runs)
    period = runs / "cifar100-long-update-period"
    if period.is_dir():
        entries = read_recipe(find_run(period).recipe).supervisions
        found.append(judge_period(Students.of(period), [entry.title for entry in entries]))
    return found + judge_switching_run(runs)


def main() -> None:
    """Print the verdicts as a table."""
    parser = argparse.ArgumentParser(description="Apply the criteria of docs/claims.md to runs.")
    parser.add_argument("runs", type=Path, help="the folder that holds the runs")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    asked = parser.parse_args()
    judged = judge_all(asked.runs)
    if asked.json:
        print(json.dumps([asdict(each) for each in judged], indent=1, ensure_ascii=False))
        return
    for each in judged:
        print(f"| {each.claim} | {each.setting} | {each.verdict} | {each.numbers} |")


if __name__ == "__main__":
    main()
