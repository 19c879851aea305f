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
from distillens.results.training import TEACHER

LOCK = ".lock"
"""The file in a run folder that the process which works on it holds."""


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
    def scores(self) -> Path:
        """What a language model scores on each sentence at the last epoch: arrays train and test."""
        return self.folder / "scores.npz"

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
            raise CheckpointError(f"no checkpoint {path}{other_epochs(path)}")
        return path

    @property
    def position(self) -> int:
        """The position of the network's supervision in the recipe; -1 for the teacher."""
        for part in (self.folder.parent.name, self.folder.parent.parent.name):
            if match := re.match(r"(\d+)-", part):
                return int(match[1])
        return TEACHER

    def epochs(self) -> list[int]:
        """Return the epochs whose weights are there: of a finished network, those that are kept."""
        found = (re.fullmatch(r"epoch-(\d+)", path.stem) for path in self.folder.glob("epoch-*"))
        return sorted(int(match[1]) for match in found if match)


def other_epochs(path: Path) -> str:
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

    @property
    def analyses(self) -> Path:
        """Records of analyses, a folder each."""
        return self.folder / "analyses"

    @property
    def additions(self) -> Path:
        """Recipes and results of seeds and supervisions that were added, a numbered folder each."""
        return self.folder / "additions"

    def addition(self, number: int) -> Run:
        """The recipe and the results of an addition; its networks lie with the others."""
        return Run(self.additions / str(number))

    def addition_numbers(self) -> list[int]:
        """Return the numbers of the additions, in their order."""
        return sorted(int(path.parent.name) for path in self.additions.glob("[0-9]*/recipe.yaml"))

    def cost(self, network: str) -> Path:
        """What the teacher or the student costs."""
        return self.folder / f"cost-{network}.json"

    @property
    def results(self) -> Path:
        """All that was found out."""
        return self.folder / "results.json"

    @property
    def language(self) -> Path:
        """What version 0.1 wrote of language models instead of ``results.json``."""
        return self.folder / "language.json"

    @property
    def report(self) -> Path:
        """The report."""
        return self.folder / "report.html"

    def figure(self, name: str, ending: str) -> Path:
        """A figure of the report as a file of its own."""
        return self.folder / "figures" / f"{name}.{ending}"

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


def slug(name: str) -> str:
    """Return a name as part of a path: lower-case letters, digits, dots and dashes."""
    plain = name.lower().replace("τ", "t").replace("α", "a").replace("=", "")
    return re.sub(r"[^a-z0-9.]+", "-", plain).strip("-.")[:40] or "unnamed"
