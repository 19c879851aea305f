"""The kinds of supervision: what they need, and which of the teacher's epochs they read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from distillens.data import Batch
from distillens.supervision import (
    SUPERVISIONS,
    AnySupervision,
    OneHot,
    RecordedTeacher,
    Setting,
    SupervisionEntry,
    Teacher,
    TeacherCheckpoint,
)
from distillens.supervision.recipe import Need, Schedules

BATCH = Batch(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64), torch.zeros(1).long())
SCHEDULES = Schedules(student_epochs=6, student_steps=3, kept=(2, 4, 6, 8), teacher_steps=5)
STEPS = SCHEDULES.student_epochs * SCHEDULES.student_steps

ENTRIES: list[dict[str, Any]] = [
    {"kind": "one-hot"},
    {"kind": "offline"},
    {"kind": "offline", "average": {"last": 3}},
    {"kind": "offline", "early_stop": 4, "average": {"decay": 0.5}},
    {"kind": "offline", "early_stop": "validation"},
    {"kind": "online"},
    {"kind": "online", "pace": 0.4, "alpha": 0.5},
    {"kind": "online", "period": {"epochs": 4}, "average": {"last": 2}},
    {"kind": "online", "pace": [[0, 0], [0.5, 0.9], [1, 1]]},
    {"kind": "co-trained"},
    {"kind": "self-distillation", "generations": 2},
    {"kind": "switched", "first": {"kind": "online"}, "then": {"kind": "one-hot"}, "at": 0.5},
]


def entry_of(values: dict[str, Any]) -> SupervisionEntry:
    return TypeAdapter(AnySupervision).validate_python(values)


@dataclass
class Recorder:
    """Teachers that record what they are asked for, and which checkpoints are loaded."""

    asked: set[Need] = field(default_factory=set)
    loaded: list[int] = field(default_factory=list)

    def _teacher(self) -> Teacher:
        return RecordedTeacher(torch.zeros(1, 3))

    def _load(self, epoch: int) -> Teacher:
        self.loaded.append(epoch)
        return self._teacher()

    def final(self) -> Teacher:
        self.asked.add("final teacher")
        return self._load(SCHEDULES.kept[-1])

    def trajectory(self) -> list[TeacherCheckpoint]:
        self.asked.add("trajectory")
        return [
            TeacherCheckpoint(e * SCHEDULES.teacher_steps, partial(self._load, e), e)
            for e in SCHEDULES.kept
        ]

    def lowest_validation_loss(self) -> int:
        return 6

    def cotrained(self) -> Teacher:
        self.asked.add("co-trained teacher")
        return self._teacher()

    def previous_generation(self) -> Teacher:
        self.asked.add("previous student")
        return self._teacher()


def epochs_read(entry: SupervisionEntry) -> Iterator[set[int]]:
    """Yield which checkpoints a training reads in each of its epochs."""
    recorder = Recorder()
    supervision = entry.build(Setting("cross-entropy", STEPS), recorder)
    current: set[int] = set()
    for epoch in range(SCHEDULES.student_epochs):
        read: set[int] = set()
        for step in range(SCHEDULES.student_steps):
            supervision.advance(BATCH, epoch * SCHEDULES.student_steps + step)
            current = set(recorder.loaded) or current
            recorder.loaded.clear()
            read |= current
        yield read


def test_there_is_a_case_for_every_kind() -> None:
    assert {values["kind"] for values in ENTRIES} == set(SUPERVISIONS.names())


@pytest.mark.parametrize("values", ENTRIES, ids=str)
def test_a_kind_asks_for_what_it_says_that_it_needs(values: dict[str, Any]) -> None:
    entry, recorder = entry_of(values), Recorder()
    entry.build(Setting("cross-entropy", STEPS), recorder)
    assert recorder.asked == entry.needs()


@pytest.mark.parametrize(
    "values", [v for v in ENTRIES if v["kind"] in ("offline", "online")], ids=str
)
def test_the_epochs_that_a_plan_counts_are_those_that_are_read(values: dict[str, Any]) -> None:
    entry = entry_of(values)
    planned = entry.teacher_epochs(SCHEDULES)
    for epoch, read in enumerate(epochs_read(entry)):
        expected = {6 if each == "validation" else each for each in planned(epoch)}
        assert read == expected


def test_an_entry_is_written_with_the_keys_of_its_kind_and_read_back() -> None:
    kinds = TypeAdapter(tuple[AnySupervision, ...])
    entries = kinds.validate_python(ENTRIES)
    assert kinds.validate_python(kinds.dump_python(entries, mode="json")) == entries
    assert kinds.dump_python(entries, mode="json")[-1]["first"]["pace"] == 1.0
    assert isinstance(entries[0].build(Setting("cross-entropy", STEPS), Recorder()), OneHot)


@pytest.mark.parametrize("kind", ["self-distillation", "switched"])
def test_what_trains_another_student_is_no_side_of_a_switch(kind: str) -> None:
    side = next(values for values in ENTRIES if values["kind"] == kind)
    switch = {"kind": "switched", "first": {"kind": "one-hot"}, "then": side, "at": 0.5}
    with pytest.raises(ValidationError, match=f"kind '{kind}' cannot be a side of a switch"):
        entry_of(switch)
