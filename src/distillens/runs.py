"""The run folder: the only module that knows its file names. Reads numbers without torch.

    recipe.yaml                      the resolved recipe
    data.json                        sizes, classes, fingerprint, changed labels
    teacher/                         a network
    students/<place>-<name>/seed-<s> a network each
    tuning/<place>-<name>/rate-<r>   a network each, trained to select a learning rate
    tuning.json                      the learning rates that were selected
    cache/                           teacher logits
    trackers/                        what experiment trackers write
    points/                          npz of the deviation plots
    cost-….json, complexity-….json   what was measured
    results.json                     all that was found out
    report.html

A network's folder holds ``epoch-0000.safetensors`` … (the epochs that ``checkpoint_every`` keeps),
``state.pt``, ``history.jsonl``, and when it is done ``cell.json`` and ``logits.npz`` (arrays train and
test).
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import yaml
from pydantic import BaseModel, Field, FiniteFloat, ValidationError, model_validator

from distillens.atomic import write_atomically
from distillens.errors import CheckpointError, RunError, listed
from distillens.npz import load_npz
from distillens.results import WRITE_AGAIN, StudyResult, from_json
from distillens.yaml_values import dump_yaml, load_yaml

LOCK = ".lock"
"""The file in a run folder that the process which works on it holds."""

FREE_KEYS = (
    "data.path", "description", "complexity", "deviation", "cache_gigabytes", "cache_on_disk",
    "trackers", "code",
)  # fmt: skip
"""Keys in which a resumed run may differ, with all below them: none of them changes a network, and
what lies at the path is compared by its fingerprint."""


@dataclass(frozen=True)
class NetworkFiles:
    """The files of one network."""

    folder: Path

    @property
    def state(self) -> Path:
        """What a training goes on from."""
        return self.folder / "state.pt"

    @property
    def history(self) -> Path:
        """One JSON line an epoch."""
        return self.folder / "history.jsonl"

    @property
    def cell(self) -> Path:
        """The network's numbers; there when it is done."""
        return self.folder / "cell.json"

    @property
    def logits(self) -> Path:
        """Logits at the last epoch: arrays train and test, in the order of the examples."""
        return self.folder / "logits.npz"

    @property
    def loading(self) -> Path:
        """How the weights of a given teacher were found in its checkpoint, in a line."""
        return self.folder / "loading.txt"

    @property
    def validation(self) -> Path:
        """Validation losses after every epoch."""
        return self.folder / "validation-losses.json"

    def generation(self, number: int) -> NetworkFiles:
        """The files of an earlier generation of self-distillation."""
        return NetworkFiles(self.folder / f"generation-{number}")

    def weights(self, epoch: int) -> Path:
        """The weights after this many epochs."""
        return self.folder / f"epoch-{epoch:04d}.safetensors"

    def kept_weights(self, epoch: int) -> Path:
        """Return the weights after this many epochs, which must be there.

        Raises
        ------
        CheckpointError
            They are missing; the message names the epochs that are there.
        """
        path = self.weights(epoch)
        if not path.is_file():
            raise CheckpointError(f"no checkpoint {path}{epochs_beside(path)}")
        return path

    def epochs(self) -> list[int]:
        """Return the epochs whose weights are there: of a finished network, those that are kept."""
        found = (re.fullmatch(r"epoch-(\d+)", path.stem) for path in self.folder.glob("epoch-*"))
        return sorted(int(match[1]) for match in found if match)


def epochs_beside(path: Path) -> str:
    """Return which epochs' weights lie beside a weights file that is missing, as the end of a message.

    Empty where the path is not that of an epoch, or no other epoch is there.
    """
    there = NetworkFiles(path.parent).epochs()
    if not re.fullmatch(r"epoch-\d+\.safetensors", path.name) or not there:
        return ""
    return (
        f"; of this network there are the epochs {listed(there)}, which checkpoint_every of its "
        "training decides"
    )


@dataclass(frozen=True)
class Run:
    """A run folder."""

    folder: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.folder / "recipe.yaml"

    @property
    def data(self) -> Path:
        """What the data were."""
        return self.folder / "data.json"

    def tokenizer(self, place: int) -> Path:
        """What made tokens of the sentences; its folder is one of Hugging Face's kind."""
        return self.folder / "tokenizers" / str(place) / "tokenizer.json"

    @property
    def cache(self) -> Path:
        """Teacher logits."""
        return self.folder / "cache"

    @property
    def trackers(self) -> Path:
        """What experiment trackers write."""
        return self.folder / "trackers"

    def complexity(self, recipe: str) -> Path:
        """Complexity curves, as soon as they are done, under the digest of what asked for them."""
        return self.folder / f"complexity-{recipe[:12]}.json"

    def cost(self, network: str) -> Path:
        """What the teacher or the student costs."""
        return self.folder / f"cost-{network}.json"

    @property
    def results(self) -> Path:
        """All that was found out."""
        return self.folder / "results.json"

    @property
    def language(self) -> Path:
        """All that a study of language models found out."""
        return self.folder / "language.json"

    @property
    def report(self) -> Path:
        """The report."""
        return self.folder / "report.html"

    def figure(self, name: str, place: int, ending: str) -> Path:
        """A picture of the curves at a place of the results."""
        number = f"-{place + 1}" if place else ""
        return self.folder / "figures" / f"{name}{number}.{ending}"

    @property
    def has_trained(self) -> bool:
        """Whether a network of the run has finished an epoch, or its numbers are there."""
        return any(
            next(self.folder.rglob(name), None) is not None for name in ("state.pt", "cell.json")
        )

    @property
    def teacher(self) -> NetworkFiles:
        """The teacher's files."""
        return NetworkFiles(self.folder / "teacher")

    def student(self, place: int, name: str, seed: int) -> NetworkFiles:
        """The files of the student under the supervision at a place of the recipe."""
        return NetworkFiles(self.folder / "students" / f"{place:02d}-{slug(name)}" / f"seed-{seed}")

    def trial(self, place: int, name: str, rate: float) -> NetworkFiles:
        """The files of a training that tries a learning rate; its cell is a `Trial`."""
        return NetworkFiles(self.folder / "tuning" / f"{place:02d}-{slug(name)}" / f"rate-{rate!r}")

    @property
    def tuning(self) -> Path:
        """The learning rates that were selected."""
        return self.folder / "tuning.json"

    def points(self, place: int, name: str, seed: int, split: str) -> Path:
        """The npz of a deviation plot."""
        return self.folder / "points" / f"{place:02d}-{slug(name)}-seed-{seed}-{split}.npz"

    def relative(self, path: Path) -> str:
        """Return a path as results name it."""
        return path.relative_to(self.folder).as_posix()

    def inside(self, name: str) -> Path:
        """Return the path that a result names.

        Raises
        ------
        RunError
            It leaves the run folder.
        """
        path = (self.folder / name).resolve()
        if not path.is_relative_to(self.folder.resolve()):
            raise RunError(f"{self.results} names {name!r}, which lies outside the run; not opened")
        return path


def slug(name: str) -> str:
    """Return a name as part of a path: lower-case letters, digits, dots and dashes."""
    plain = name.lower().replace("τ", "t").replace("α", "a").replace("=", "")
    return re.sub(r"[^a-z0-9.]+", "-", plain).strip("-.")[:40] or "unnamed"


def open_run(
    folder: Path,
    recipe: Mapping[str, Any],
    as_now: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> Run:
    """Make a run folder for a resolved recipe, or open the one that this recipe made.

    A folder in which no epoch was finished yet takes another recipe: a start that failed does not
    block the corrected one.

    Raises
    ------
    RunError
        As :func:`check_folder`.
    """
    check_folder(folder, recipe, as_now)
    run = Run(folder)
    if not run.has_trained:
        run.data.unlink(missing_ok=True)
    write_atomically(run.recipe, _as_yaml(recipe))
    return run


def check_folder(
    folder: Path,
    recipe: Mapping[str, Any],
    as_now: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> None:
    """Check that a folder can hold the run of a resolved recipe; nothing is written.

    ``as_now`` brings a recipe that an earlier version wrote to the keys of today; it leaves one of
    today as it is, but for values that mean the same.

    Raises
    ------
    RunError
        The folder belongs to another recipe, or holds something that is no run.
    """
    run = Run(folder)
    if run.recipe.is_file():
        _refuse_links(run)
        if not run.has_trained:
            return
        before = _flat(as_now(_read_yaml(run.recipe)))
        now = _flat(as_now(json.loads(json.dumps(recipe))))
        for key in sorted({*before, *now}):
            free = any(key == name or key.startswith(f"{name}.") for name in FREE_KEYS)
            if not free and before.get(key) != now.get(key):
                raise RunError(
                    f"{folder} was made by another recipe: {key} is {before.get(key)!r} there and "
                    f"{now.get(key)!r} here; choose another --out"
                )
    # A lock alone is left of a run that could not begin.
    elif folder.exists() and (
        not folder.is_dir() or any(path.name != LOCK for path in folder.iterdir())
    ):
        raise RunError(f"{folder} exists and is no run folder; choose another --out")


def _as_yaml(recipe: Mapping[str, Any]) -> str:
    return dump_yaml(json.loads(json.dumps(recipe)))


def _refuse_links(run: Run) -> None:
    """Refuse a run that a link could make read or write outside itself."""
    for path in run.folder.rglob("*"):
        if path.is_symlink():
            raise RunError(f"{path} is a link, which a run may not hold; remove it")


@contextmanager
def locked(run: Run) -> Iterator[None]:
    """Hold a run folder for this process, and make it where there is none.

    The lock goes with the process however it ends.

    Raises
    ------
    RunError
        Another process is working on it.
    """
    try:
        run.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"cannot make {run.folder}: {error.strerror}; choose another --out"
        ) from None
    lock = os.open(run.folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise RunError(f"another process is working on {run.folder}; wait for it") from None
    try:
        yield
    finally:
        os.close(lock)


def find_run(folder: Path) -> Run:
    """Return a run that is there.

    Raises
    ------
    RunError
        The folder is no run.
    """
    run = Run(folder)
    if not run.recipe.is_file():
        raise RunError(f"{folder} is no run folder: it has no recipe.yaml")
    _refuse_links(run)
    return run


def read_result(run: Run) -> StudyResult:
    """Read a finished run's results.

    Raises
    ------
    RunError
        The run is not finished, or its results are damaged.
    """
    if run.language.is_file():
        raise RunError(f"{run.folder} is a run of language models; see its {run.language.name}")
    if not run.results.is_file():
        done = len(list(run.folder.glob("students/*/*/cell.json")))
        raise RunError(
            f"{run.folder} is not finished ({done} students done); "
            "run its recipe again with the same --out to go on"
        )
    return from_json(StudyResult, run.results.read_bytes(), str(run.results))


def read_finished(run: Run) -> StudyResult:
    """Read the results of a run whose networks are all trained.

    Raises
    ------
    RunError
        Networks are open, or as `read_result`.
    """
    result = read_result(run)
    if result.open_cells:
        raise RunError(
            f"{run.folder} is not finished: {len(result.open_cells)} network(s) are open, first "
            f"{result.open_cells[0]}; run its recipe again to go on"
        )
    return result


def read_arrays(path: Path, advice: str = "run the recipe again") -> dict[str, np.ndarray]:
    """Read an npz of plain arrays; ``advice`` tells how to get it back.

    Raises
    ------
    RunError
        It is missing or damaged.
    """
    try:
        return load_npz(path)
    except ValueError as error:
        raise RunError(f"{path} cannot be read: {error}; {advice}") from None


def read_json(path: Path) -> Any:
    """Read a JSON file of a run, which writes it again if it is deleted.

    Raises
    ------
    RunError
        It is missing or damaged.
    """
    if not path.is_file():
        raise RunError(f"{path} is missing; {WRITE_AGAIN.removeprefix('delete it and ')}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} cannot be read: {error}; {WRITE_AGAIN}") from None


class _Scale(BaseModel):
    mean: list[FiniteFloat]
    deviation: list[Annotated[FiniteFloat, Field(gt=0)]]


class _Origin(_Scale):
    origin: str = Field(alias="from")


class _Data(BaseModel):
    """What data.json holds. Earlier versions wrote no input_type, normalisations and vocabularies."""

    fingerprint: str
    classes: list[str] = Field(min_length=2)
    input_shape: list[Annotated[int, Field(ge=1)]] = Field(min_length=1)
    input_type: str | None = None
    normalisation: _Scale | None = None
    teacher_normalisation: _Origin | None = None
    student_normalisation: _Origin | None = None
    vocabularies: list[Annotated[int, Field(ge=1)]] = []

    @model_validator(mode="after")
    def _a_number_a_channel(self) -> _Data:
        channels = self.input_shape[0]
        for scale in (self.normalisation, self.teacher_normalisation, self.student_normalisation):
            if scale is not None and not len(scale.mean) == len(scale.deviation) == channels:
                raise ValueError(f"normalisation needs {channels} means and deviations")
        return self


def read_data(run: Run) -> dict[str, Any]:
    """Read what a run says of its data.

    Raises
    ------
    RunError
        It is missing, damaged, or lacks a part.
    """
    content = read_json(run.data)
    try:
        _Data.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        said = [".".join(str(part) for part in first["loc"]), first["msg"]]
        text = ": ".join(part.removeprefix("Value error, ") for part in said if part)
        raise RunError(f"{run.data} is damaged: {text}; {WRITE_AGAIN}") from None
    return content


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = load_yaml(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        text = " ".join(str(error).split())
        raise RunError(f"{path} cannot be read: {text}; choose another --out") from None
    if not isinstance(content, dict):
        raise RunError(f"{path} is no recipe; choose another --out")
    return content


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        items = [(f"{prefix}.{key}" if prefix else str(key), part) for key, part in value.items()]
    elif isinstance(value, list) and any(isinstance(part, (dict, list)) for part in value):
        items = [(f"{prefix}.{place}", part) for place, part in enumerate(value)]
    else:
        return {prefix: value}
    return {key: leaf for name, part in items for key, leaf in _flat(part, name).items()}
