"""The files of a run folder. No other module knows their names.

    recipe.yaml                      the resolved recipe
    data.json                        sizes, classes, fingerprint, changed labels
    teacher/                         a network
    students/<place>-<name>/seed-<s> a network each
    tuning/<place>-<name>/rate-<r>   a network each, trained to select a learning rate
    tuning.json                      the learning rates that were selected
    cache/                           teacher logits
    trackers/                        what experiment trackers write
    cost-….json                      costs of the teacher and the student
    results.json                     what the training found out
    additions/<n>/                   recipe.yaml and results.json with seeds or supervisions that were
                                     added after the run had been finished
    analyses/<name>-<digest>/        record.json and npz files of an analysis of the finished run
    report.html

A network's folder holds ``epoch-0000.safetensors`` … (the epochs that ``checkpoint_every`` keeps),
``state.pt``, ``history.jsonl``, and when it is done ``cell.json`` and ``logits.npz`` (arrays train and
test), or ``scores.npz`` for a language model, whose logits would be too large.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from distillens.errors import CheckpointError, listed
from distillens.files.paths import user_path
from distillens.results.training import TEACHER

LOCK = ".lock"
"""Lock file of the process that works on a run folder."""


@dataclass(frozen=True)
class _Path:
    """An attribute of a folder: a path in it."""

    name: str

    def __get__(self, owner: NetworkFiles | Run, kind: type) -> Path:
        return owner.folder / self.name


@dataclass(frozen=True)
class NetworkFiles:
    """The files of one network."""

    folder: Path

    cell = _Path("cell.json")
    """The network's numbers; the file exists if the network is finished."""
    logits = _Path("logits.npz")
    """Logits at the last epoch: arrays train and test, in the order of the examples."""
    scores = _Path("scores.npz")
    """Scores of a language model on each sentence at the last epoch: arrays train and test."""
    loading = _Path("loading.txt")
    """One-line note on how the weights of a given teacher were found in its checkpoint."""
    validation = _Path("validation-losses.json")
    """Validation losses after every epoch."""

    @property
    def state(self) -> Path:
        """The state that a training resumes from."""
        return self.folder / "state.pt"

    @property
    def history(self) -> Path:
        """One JSON line per epoch."""
        return self.folder / "history.jsonl"

    def generation(self, number: int) -> NetworkFiles:
        """The files of an earlier generation of self-distillation."""
        return NetworkFiles(self.folder / f"generation-{number}")

    def weights(self, epoch: int) -> Path:
        """The weights after this many epochs."""
        return self.folder / f"epoch-{epoch:04d}.safetensors"

    def kept_weights(self, epoch: int) -> Path:
        """Return the existing weights after this many epochs.

        Raises
        ------
        CheckpointError
            They are missing; the message names the existing epochs.
        """
        path = self.weights(epoch)
        if not path.is_file():
            raise CheckpointError(f"no checkpoint {path}{other_epochs(path)}")
        return path

    @property
    def position(self) -> int:
        """The position of the network's supervision in the recipe; -1 for the teacher."""
        # The folder of the run itself may have any name, so only the last parts of the path count.
        path = "/".join(self.folder.parts[-3:])
        if match := re.search(r"(?:^|/)(\d+)-[^/]*/(?:seed|rate)-[^/]*(?:/generation-\d+)?$", path):
            return int(match[1])
        return TEACHER

    def epochs(self) -> list[int]:
        """Return the epochs whose weights exist."""
        found = (re.fullmatch(r"epoch-(\d+)", path.stem) for path in self.folder.glob("epoch-*"))
        return sorted(int(match[1]) for match in found if match)


def other_epochs(path: Path) -> str:
    """Return the end of a message on a missing weights file, which names the existing epochs.

    It is empty if the path is not that of an epoch or no other epoch exists.
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

    recipe = _Path("recipe.yaml")
    """The resolved recipe."""
    data = _Path("data.json")
    """Description of the data."""
    cache = _Path("cache")
    """Teacher logits."""
    trackers = _Path("trackers")
    """Files of experiment trackers."""
    analyses = _Path("analyses")
    """Records of analyses, one folder each."""
    additions = _Path("additions")
    """Recipes and results of seeds and supervisions that were added, a numbered folder each."""
    results = _Path("results.json")
    """Results of the training."""
    language = _Path("language.json")
    """The results of language models in a run of version 0.1, which has no ``results.json``."""
    report = _Path("report.html")
    """The report."""
    tuning = _Path("tuning.json")
    """The learning rates that were selected."""

    def tokenizer(self, place: int) -> Path:
        """The tokenizer of the sentences, in Hugging Face's format."""
        return self.folder / "tokenizers" / str(place) / "tokenizer.json"

    def addition(self, number: int) -> Run:
        """The recipe and the results of an addition; its networks lie with the others."""
        return Run(self.additions / str(number))

    def stages(self) -> list[Run]:
        """Return the run itself and its additions, in their order."""
        numbers = sorted(
            int(path.parent.name) for path in self.additions.glob("[0-9]*/recipe.yaml")
        )
        return [self, *map(self.addition, numbers)]

    def cost(self, network: str) -> Path:
        """Inference cost of the teacher or the student."""
        return self.folder / f"cost-{network}.json"

    def figure(self, name: str, ending: str) -> Path:
        """A figure of the report as a file of its own."""
        return self.folder / "figures" / f"{name}.{ending}"

    @property
    def has_trained(self) -> bool:
        """Whether a network of the run has finished an epoch or has numbers."""
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


def run_folder(out: str | Path | None, name: str) -> Path:
    """Return the run folder that a user names; by default ``runs/<name of the recipe>``."""
    return user_path(out) if out is not None else Path("runs") / slug(name)


def slug(name: str) -> str:
    """Return a name as part of a path: lower-case letters, digits, dots and dashes."""
    plain = name.lower().replace("τ", "t").replace("α", "a").replace("=", "")
    return re.sub(r"[^a-z0-9.]+", "-", plain).strip("-.")[:40] or "unnamed"
