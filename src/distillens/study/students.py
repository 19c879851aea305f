"""Train the students of a study: every supervision, every seed, and generations of students."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from distillens.errors import DistillensError
from distillens.forward.device_errors import ran_out_of_memory
from distillens.results.training import Cell, Trial
from distillens.runs.layout import NetworkFiles
from distillens.study.context import StudyContext
from distillens.study.networks import (
    Network,
    epochs_done,
    read_cell,
    read_trial,
    train_network,
    train_networks,
    train_trial,
    weights_digest,
)
from distillens.study.recipe import Recipe
from distillens.study.task import TeacherSource
from distillens.study.teacher import StudyTeacher
from distillens.supervision import (
    CotrainedTeacher,
    LogitCache,
    OneHot,
    Setting,
    Supervision,
    Teacher,
    TeacherCheckpoint,
    build_supervision,
)
from distillens.training import TrainingRecipe, make_optimizer

APART = 10_000
"""Difference between the seeds of two generations, whose initial weights must differ."""


@dataclass(frozen=True)
class Previous:
    """A finished student that teaches the next generation."""

    files: NetworkFiles
    epochs: int
    digest: str


@dataclass(frozen=True)
class StudentTeachers:
    """The teachers of one student; fulfils `distillens.supervision.Teachers`."""

    context: StudyContext
    teacher: StudyTeacher
    source: TeacherSource
    """Source of the teacher's checkpoints."""
    own: TeacherSource
    """Source of students as teachers, whose inputs may have another normalisation."""
    epochs: int
    """Number of epochs of the student."""
    steps: int
    """Number of steps in an epoch of the student."""
    before: Previous | None
    """The finished student of the generation before."""

    def final(self) -> Teacher:
        """Return the finished teacher."""
        return self.teacher.final(self.source)

    def trajectory(self) -> Sequence[TeacherCheckpoint]:
        """Return the teacher's checkpoints."""
        return self.teacher.trajectory(self.source)

    def lowest_validation_loss(self) -> int:
        """Return the teacher's epoch with the lowest validation loss."""
        return self.teacher.lowest_validation_loss()

    def cotrained(self) -> Teacher:
        """Return a fresh teacher that is co-trained with the student on its own schedule."""
        model, training = self.teacher.model, self.teacher.training
        assert model is not None  # the recipe refuses a co-trained teacher without training
        assert training is not None
        recipe = self.context.recipe
        module = self.context.build(model, recipe.teacher.seed, "teacher")
        # It is given the student's batches.
        module = self.context.on_student_inputs(module.to(self.context.accelerator.device))
        steps, total = self.steps, self.epochs * self.steps
        return CotrainedTeacher(
            module,
            make_optimizer(module, training),
            OneHot(),
            lambda step: training.learning_rate * training.schedule.factor_at(step, steps, total),
            bfloat16=recipe.precision == "bfloat16",
        )

    def previous_generation(self) -> Teacher:
        """Return the student of the generation before."""
        assert self.before is not None
        files, last = self.before.files, self.before.epochs
        model = self.context.recipe.student.model
        digest = weights_digest(files, last, self.before.digest)
        return self.own(digest, lambda: self.context.load(model, files, last))


@dataclass(frozen=True)
class Student:
    """A student of the grid: the place of its supervision in the recipe, and its seed.

    One with a ``rate`` is a trial, by which a learning rate is selected.
    """

    place: int
    seed: int
    rate: float | None = None

    def title(self, recipe: Recipe) -> str:
        """Return its name in lists."""
        return f"{recipe.supervisions[self.place].title}, {self._told()}"

    def _told(self) -> str:
        trial = "" if self.rate is None else f", trial of learning rate {self.rate:g}"
        return f"seed {self.seed}{trial}"

    def training(self, recipe: Recipe) -> TrainingRecipe:
        """Return how it is trained."""
        training = recipe.training_of(recipe.supervisions[self.place])
        if self.rate is None:
            return training
        return training.model_copy(update={"learning_rate": self.rate})

    def files(self, context: StudyContext) -> NetworkFiles:
        """Return its files."""
        title = context.recipe.supervisions[self.place].title
        if self.rate is not None:
            return context.run.trial(self.place, title, self.rate)
        return context.run.student(self.place, title, self.seed)

    def networks(self, context: StudyContext) -> dict[str, NetworkFiles]:
        """Return its networks by their titles in the order of training: generations, itself last."""
        entry, files = context.recipe.supervisions[self.place], self.files(context)
        last = entry.students()
        if last == 1:
            return {self.title(context.recipe): files}
        return {
            f"{entry.title}, generation {number}, {self._told()}": (
                files if number == last else files.generation(number)
            )
            for number in range(1, last + 1)
        }

    def numbers(self, context: StudyContext) -> Cell | Trial:
        """Return its numbers; it is finished."""
        files = self.files(context)
        return read_cell(files) if self.rate is None else read_trial(files)

    def epochs_done(self, context: StudyContext) -> int:
        """Return how many epochs its networks have been trained for."""
        return sum(epochs_done(files) for files in self.networks(context).values())

    def origin(self, recipe: Recipe) -> Student | None:
        """Return the student that must be finished before: self-distillation starts from labels.

        A trial starts from the one-hot trial of the learning rate that was selected for labels, which
        ``recipe`` holds by then.
        """
        mine = recipe.supervisions[self.place]
        if "previous student" not in mine.needs():
            return None
        seed = self.seed if self.rate is None else recipe.seeds_of(mine)[0]
        place, labels = next(
            (place, entry)
            for place, entry in enumerate(recipe.supervisions)
            if entry.is_baseline and seed in recipe.seeds_of(entry)
        )
        rate = None if self.rate is None else recipe.training_of(labels).learning_rate
        return Student(place, self.seed, rate)


Done = Callable[[Student, Cell | Trial], object]
"""Called with each newly trained student and its numbers; those of a trial are a `Trial`."""

Spread = Callable[[StudyContext, StudyTeacher, Sequence[Student], Done], None]
"""Trains the given students, each by `train_student` and after its origin, in any processes."""


def one_by_one(
    context: StudyContext, teacher: StudyTeacher, students: Sequence[Student], done: Done
) -> None:
    """Train students in this process, in the order given."""
    for student in students:
        done(student, train_student(context, teacher, student))


def seed_by_seed(
    context: StudyContext, teacher: StudyTeacher, students: Sequence[Student], done: Done
) -> None:
    """Train the students of one seed at the same time, in this process.

    Trials, students whose batches have another size, and generations of students are trained one by one
    after the others of their seed.
    """
    left = list(students)
    while left:
        first = left[0]
        group = [each for each in left if _share_batches(context.recipe, first, each)] or [first]
        train = _train_group if len(group) > 1 else one_by_one
        train(context, teacher, group, done)
        left = [each for each in left if each not in group]


def on_this_device(
    context: StudyContext, teacher: StudyTeacher, students: Sequence[Student], done: Done
) -> None:
    """Train students in this process: `seed_by_seed` on a GPU, which one small network leaves idle.

    On a CPU, or where several processes share each batch, they are trained one by one.
    """
    accelerator = context.accelerator
    alone = accelerator.device.type != "cuda" or accelerator.num_processes > 1
    (one_by_one if alone else seed_by_seed)(context, teacher, students, done)


def _share_batches(recipe: Recipe, first: Student, other: Student) -> bool:
    needs = [recipe.supervisions[each.place].needs() for each in (first, other)]
    sizes = {each.training(recipe).batch_size for each in (first, other)}
    trials = first.rate is not None or other.rate is not None
    same_batches = first.seed == other.seed and len(sizes) == 1
    return same_batches and not trials and "previous student" not in needs[0] | needs[1]


def _train_group(
    context: StudyContext, teacher: StudyTeacher, students: Sequence[Student], done: Done
) -> None:
    recipe, seed, fits = context.recipe, students[0].seed, True
    networks = [
        _network(context, teacher, each, each.files(context), each.title(recipe), None, seed)
        for each in students
    ]
    try:
        train_networks(context, networks, lambda place, cell: done(students[place], cell))
    except DistillensError as error:
        if error.__cause__ is None or not ran_out_of_memory(error.__cause__):
            raise
        # The error keeps the memory until this block ends.
        fits = False
    if not fits:
        warnings.warn(
            f"the {len(students)} students of seed {seed} do not fit on the device at the same time; "
            "they are trained one after the other",
            stacklevel=2,
        )
        torch.cuda.empty_cache()
        left = [student for student in students if not student.files(context).cell.is_file()]
        one_by_one(context, teacher, left, done)


def train_students(
    context: StudyContext,
    teacher: StudyTeacher,
    done: Callable[[list[list[Cell]]], object] = lambda students: None,
    spread: Spread = on_this_device,
) -> list[list[Cell]]:
    """Return the cells of every supervision of the recipe, one list each in the order of seeds.

    ``done`` is called with the cells so far after every newly trained network; ``spread`` trains
    the others.
    """
    recipe = context.recipe

    def table(found: Mapping[Student, Cell | Trial]) -> list[list[Cell]]:
        cells = {student: cell for student, cell in found.items() if isinstance(cell, Cell)}
        return [
            [cells[mine] for seed in recipe.seeds_of(entry) if (mine := Student(k, seed)) in cells]
            for k, entry in enumerate(recipe.supervisions)
        ]

    students = _in_order(recipe)
    return table(
        train_missing(context, teacher, students, spread, lambda found: done(table(found)))
    )


def train_missing(
    context: StudyContext,
    teacher: StudyTeacher,
    students: Sequence[Student],
    spread: Spread,
    done: Callable[[Mapping[Student, Cell | Trial]], object] = lambda found: None,
) -> dict[Student, Cell | Trial]:
    """Train those students that are not finished, and return the numbers of all of them.

    ``done`` is called with the numbers so far after every newly trained student.
    """
    found: dict[Student, Cell | Trial] = {}
    for student in students:
        if student.files(context).cell.is_file():
            found[student] = student.numbers(context)
            # Its epochs were logged; later ones are logged after them.
            context.tracked.taken += student.epochs_done(context)

    def trained(student: Student, numbers: Cell | Trial) -> None:
        found[student] = numbers
        done(found)

    spread(context, teacher, [student for student in students if student not in found], trained)
    return found


def _in_order(recipe: Recipe) -> list[Student]:
    # Seed by seed, so that an interrupted run has complete rows; labels first, because
    # self-distillation starts from their student.
    places = sorted(
        range(len(recipe.supervisions)), key=lambda k: not recipe.supervisions[k].is_baseline
    )
    return [
        Student(place, seed)
        for seed in recipe.seeds
        for place in places
        if seed in recipe.seeds_of(recipe.supervisions[place])
    ]


def train_student(context: StudyContext, teacher: StudyTeacher, student: Student) -> Cell | Trial:
    """Train a student, or resume its training; its origin must be finished.

    A trial ends with the first generation that diverges.
    """
    before = _origin(context, student)
    train = train_network if student.rate is None else train_trial
    cell: Cell | Trial | None = None
    for generation, (title, files) in enumerate(student.networks(context).items(), 1):
        start = student.seed + (generation * APART if before is not None else 0)
        network = _network(context, teacher, student, files, title, before, start)
        cell = train(context, network)
        if isinstance(cell, Trial) and cell.failure:
            return cell
        before = Previous(files, network.training.epochs, cell.weights_digest)
    assert cell is not None
    return cell


def _origin(context: StudyContext, student: Student) -> Previous | None:
    origin = student.origin(context.recipe)
    if origin is None:
        return None
    digest = origin.numbers(context).weights_digest
    return Previous(origin.files(context), origin.training(context.recipe).epochs, digest)


def _network(
    context: StudyContext,
    teacher: StudyTeacher,
    student: Student,
    files: NetworkFiles,
    title: str,
    before: Previous | None,
    start: int,
) -> Network:
    """Return a network of a student, to train it; ``start`` is the seed of its initial weights."""
    recipe, training = context.recipe, student.training(context.recipe)
    entry: Any = recipe.supervisions[student.place]

    def supervision() -> Supervision:
        steps = len(context.batches(training, student.seed))
        source, own = (
            context.task.teachers(
                LogitCache(
                    teacher.cache_folder,
                    context.batches(training, student.seed, role),
                    recipe.precision,
                    max_bytes=recipe.cache_bytes,
                    top_k=context.top_k,
                    on_disk=recipe.cache_on_disk,
                )
            )
            for role in ("teacher", "student")
        )
        setting = Setting(recipe.loss, training.epochs * steps, context.trust_code)
        teachers = StudentTeachers(context, teacher, source, own, training.epochs, steps, before)
        return build_supervision(entry, setting, teachers)

    return Network(
        files, recipe.student.model, training, supervision, entry.title, title, student.seed, start
    )
