"""Distil language models: a teacher and students that predict each next token.

The supervisions are those of any study; logits have shape (B, T, C) with a mask, and an audit takes
each token for an example. Shapes: N sentences, T positions, C tokens of the vocabulary, M tokens that
count.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from distillens.array_files import Rows
from distillens.atomic import write_atomically
from distillens.audit_results import Audit
from distillens.data import Batch, Batches, DataRecipe, Examples, Splits, load_splits
from distillens.data.next_tokens import NextTokens, next_tokens
from distillens.errors import DataError, RecipeError, RunError
from distillens.language_results import LanguageModelResult, LanguageStudy, TokenAudit
from distillens.measures import audit
from distillens.models import LanguageModel, count_parameters, load_weights
from distillens.progress import Progress, silent
from distillens.results import SCHEMA, Estimate, Interval, from_json, to_json
from distillens.runs import NetworkFiles, Run, locked, open_run, read_json, slug
from distillens.study.reading import load_recipe, override_key
from distillens.supervision import (
    FixedTeacher,
    OneHot,
    Setting,
    Supervision,
    SupervisionRecipe,
    Teacher,
    TeacherCheckpoint,
    build_supervision,
    parts_of,
)
from distillens.training import TrainingRecipe, accelerator_for, fit

KINDS = ("one-hot", "offline", "online", "switched")
BATCH = 64
"""Sentences of a forward pass without gradients."""
NORMAL = 1.959964


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LanguageModelRecipe(_Part):
    """A transformer that sees the tokens up to each place; see `distillens.models.LanguageModel`."""

    layers: int = Field(default=2, ge=1)
    width: int = Field(default=128, ge=1)
    heads: int = Field(default=4, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)


class LanguagePart(_Part):
    """A language model and how it is trained."""

    model: LanguageModelRecipe
    training: TrainingRecipe


class LanguageRecipe(_Part):
    """A study of language models: one teacher, one student, several supervisions and seeds.

    ``data`` is text with one tokenizer; its labels are not used. ``audited_tokens`` bounds the tokens
    of a split that are audited, whole sentences in their order.
    """

    kind: Literal["language"]
    name: str = Field(min_length=1, max_length=80)
    description: str = ""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(0,), min_length=1)
    data: DataRecipe
    teacher: LanguagePart
    teacher_seed: int = Field(default=1000, ge=0)
    student: LanguagePart
    supervisions: tuple[SupervisionRecipe, ...] = Field(min_length=1)
    audited_tokens: int = Field(default=5000, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> LanguageRecipe:
        if len(self.data.tokenizers) != 1:
            raise ValueError("a language model needs data of source text with one tokenizer")
        titles = [entry.title for entry in self.supervisions]
        if len(set(titles)) < len(titles):
            raise ValueError("two supervisions have one name; give one another name")
        for entry in self.supervisions:
            if entry.kind not in KINDS:
                raise ValueError(
                    f"a language model is supervised by {', '.join(KINDS)}, got {entry.kind!r}"
                )
            if entry.seeds is not None:
                raise ValueError("supervisions of language models take all seeds; leave seeds out")
            for part in parts_of(entry):
                if part.kind not in KINDS:
                    raise ValueError(f"a switch of language models has no part {part.kind!r}")
                if getattr(part, "loss", None) is not None:
                    raise ValueError("tokens know cross-entropy alone; leave loss out")
                stop = getattr(part, "early_stop", None)
                if stop == "validation":
                    raise ValueError("a language model's early_stop names an epoch")
        return self


def read_language_recipe(where: str | Path, overrides: Sequence[str] = ()) -> LanguageRecipe:
    """Read a recipe of kind "language", a YAML file or a shipped name, with ``key=value`` overrides.

    Raises
    ------
    RecipeError
        As `distillens.read_recipe`.
    """
    content = load_recipe(where)
    if content.get("kind") != "language":
        raise RecipeError(f"{where} is no recipe of kind language; use `distillens run`")
    for each in overrides:
        override_key(content, each)
    try:
        return LanguageRecipe.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        text = first["msg"].removeprefix("Value error, ")
        raise RecipeError(f"{place or 'the recipe'}: {text}") from None


def run_language(
    recipe: LanguageRecipe, out: str | Path | None = None, *, progress: Progress = silent
) -> LanguageStudy:
    """Train a teacher and students of next tokens, and audit the students token by token.

    A run that was interrupted goes on where it was.

    Parameters
    ----------
    recipe
        See `read_language_recipe`.
    out
        The run folder; by default ``runs/<name of the recipe>``.
    progress
        Where to show how far it is.

    Raises
    ------
    DistillensError
        One of its kinds: the data or the folder cannot be used as given, or a training diverged.
    """
    if (processes := accelerator_for("float32").num_processes) > 1:
        raise RecipeError(
            f"a launcher has started {processes} processes; language models are trained by one"
        )
    folder = Path(out) if out is not None else Path("runs") / slug(recipe.name)
    run = open_run(folder, recipe.model_dump(mode="json"))
    with locked(run):
        return _Study(recipe, run, load_splits(recipe.data), progress).carry_out()


@dataclass(frozen=True)
class _Teachers:
    """The trained teacher; fulfils `distillens.supervision.Teachers` as far as the recipe allows."""

    study: _Study
    steps: int

    def final(self) -> Teacher:
        """Return the teacher after its last epoch."""
        return self._at(self.study.recipe.teacher.training.epochs)

    def trajectory(self) -> Sequence[TeacherCheckpoint]:
        """Return the checkpoints of its training."""
        epochs = self.study.recipe.teacher.training.epochs
        return [
            TeacherCheckpoint(epoch * self.steps, partial(self._at, epoch))
            for epoch in range(1, epochs + 1)
        ]

    def _at(self, epoch: int) -> Teacher:
        return FixedTeacher(
            self.study.load(self.study.recipe.teacher, self.study.run.teacher, epoch)
        )

    def lowest_validation_loss(self) -> int:
        """Not there: the recipe refuses what needs it, as below."""
        raise RecipeError("a language model's early_stop names an epoch")

    def cotrained(self) -> Teacher:
        """Not there."""
        raise RecipeError("a language model has no co-trained teacher")

    def previous_generation(self) -> Teacher:
        """Not there."""
        raise RecipeError("a language model is not self-distilled")


@dataclass(frozen=True)
class _Study:
    recipe: LanguageRecipe
    run: Run
    splits: Splits
    progress: Progress

    def carry_out(self) -> LanguageStudy:
        recipe, run = self.recipe, self.run
        self._bind_data()
        models = [self._train("teacher", run.teacher, recipe.teacher, recipe.teacher_seed, OneHot)]
        audits = []
        for seed in recipe.seeds:
            lone = None
            # Labels first: their student is what the others are compared with.
            for place, entry in sorted(
                enumerate(recipe.supervisions), key=lambda one: one[1].kind != "one-hot"
            ):
                files = run.student(place, entry.title, seed)
                build = partial(self._supervision, entry)
                models.append(self._train(entry.title, files, recipe.student, seed, build))
                lone = lone or (files if entry.kind == "one-hot" else None)
                audits.append(TokenAudit(entry.title, seed, self._audit(files, lone)))
        train, test = self.splits.train, self.splits.test
        result = LanguageStudy(
            schema_version=SCHEMA,
            name=recipe.name,
            description=recipe.description,
            vocabulary=train.vocabularies[0],
            train_sentences=len(train),
            train_tokens=_count(train),
            test_sentences=len(test),
            test_tokens=_count(test),
            models=tuple(models),
            audits=tuple(audits),
            versions={"python": platform.python_version(), "torch": str(torch.__version__)},
        )
        write_atomically(run.language, to_json(result))
        return result

    def load(self, part: LanguagePart, files: NetworkFiles, epoch: int) -> LanguageModel:
        """Return a model with the weights that it had after an epoch."""
        model = self._build(part, 0)
        load_weights(files.weights(epoch), model)
        return model.eval()

    def _build(self, part: LanguagePart, seed: int) -> LanguageModel:
        train = self.splits.train
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return LanguageModel(
                train.vocabularies[0], train.input_shape[0], **part.model.model_dump()
            )

    def _supervision(self, entry: Any) -> Supervision:
        training = self.recipe.student.training
        steps = training.epochs * self._steps(training)
        teachers = _Teachers(self, self._steps(self.recipe.teacher.training))
        return build_supervision(entry, Setting("cross-entropy", steps), teachers)

    def _steps(self, training: TrainingRecipe) -> int:
        return -(-len(self.splits.train) // training.batch_size)

    def _train(
        self,
        name: str,
        files: NetworkFiles,
        part: LanguagePart,
        seed: int,
        build: Callable[[], Supervision],
    ) -> LanguageModelResult:
        if files.cell.is_file():
            return from_json(LanguageModelResult, files.cell.read_bytes(), str(files.cell))
        model = self._build(part, seed)
        torch.manual_seed(seed)
        batches = NextTokens(Batches(self.splits.train, part.training.batch_size, seed=seed))
        title = name if name == "teacher" else f"{name}, seed {seed}"
        history = fit(
            model,
            build(),
            batches,
            part.training,
            store=files,
            accelerator=accelerator_for("float32"),
            progress=self.progress,
            title=title,
        )
        loss, accuracy = _evaluate(model, self.splits.test)
        result = LanguageModelResult(
            name=name,
            seed=seed,
            parameters=count_parameters(model),
            epochs=part.training.epochs,
            seconds=history.seconds,
            test_loss=loss,
            test_accuracy=accuracy,
            weights_digest=history.digest or "",
        )
        write_atomically(files.cell, to_json(result))
        return result

    def _audit(self, student: NetworkFiles, lone: NetworkFiles | None) -> Audit:
        recipe, most = self.recipe, self.recipe.audited_tokens
        networks = {
            "teacher": self.load(recipe.teacher, self.run.teacher, recipe.teacher.training.epochs),
            "student": self.load(recipe.student, student, recipe.student.training.epochs),
        }
        if lone is not None and lone != student:
            networks["reference"] = self.load(recipe.student, lone, recipe.student.training.epochs)
        given: dict[str, dict[str, Rows]] = {name: {} for name in (*networks, "labels")}
        for split in ("train", "test"):
            examples = first_tokens(getattr(self.splits, split), most)
            for name, model in networks.items():
                logits_MC, labels_M, index_M = token_logits(model, examples)
                given[name][split] = Rows(logits_MC, index_M)
                given["labels"][split] = Rows(labels_M, index_M)
        return audit(
            given["teacher"],
            given["student"],
            given["labels"],
            reference=given.get("reference"),
            kind="logits",
            telling=0,
        )

    def _bind_data(self) -> None:
        path, found = self.run.data, {"fingerprint": self.splits.fingerprint}
        if path.is_file():
            if read_json(path) != found:
                raise RunError(f"{self.run.folder} was made from other data; choose another --out")
            return
        write_atomically(self.run.tokenizer(0), self.splits.tokenizers[0])
        write_atomically(path, json.dumps(found) + "\n")


def first_tokens(examples: Examples, most: int) -> Examples:
    """Return as many of the first sentences as have no more than so many next tokens together."""
    counts_N = (examples.inputs[:, 1:] >= 0).sum(1)
    kept = int((counts_N.cumsum(0) <= most).sum())
    if not kept:
        raise DataError(
            f"the first sentence has {int(counts_N[0])} tokens, more than the {most} to audit"
        )
    return examples.take(slice(0, kept))


@torch.no_grad()
def token_logits(
    model: torch.nn.Module, examples: Examples
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what a language model says of every next token, in evaluation mode.

    Returns
    -------
    Logits (M, C) float32, the tokens that came (M,), and their indices (M,): sentence · T + place, with
    the sentence's stable index.
    """
    model.eval()
    logits, labels, index = [], [], []
    width = examples.input_shape[0]
    for batch in _in_order(model, examples):
        each = next_tokens(batch)
        assert each.mask is not None
        mask = each.mask.cpu()
        logits.append(model(each.inputs).float().cpu()[mask])
        labels.append(each.labels.cpu()[mask])
        places = torch.arange(1, width).expand_as(mask)
        index.append((batch.indices[:, None] * width + places)[mask])
    return (
        torch.cat(logits).numpy(),
        torch.cat(labels).numpy(),
        torch.cat(index).numpy(),
    )


@torch.no_grad()
def _evaluate(model: torch.nn.Module, examples: Examples) -> tuple[Estimate, Estimate]:
    """Return the loss and the accuracy of a token."""
    model.eval()
    losses, right, counts = [], [], []
    for batch in _in_order(model, examples):
        each = next_tokens(batch)
        assert each.mask is not None
        logits = model(each.inputs)
        said = logits.log_softmax(-1).gather(-1, each.labels.clamp_min(0)[..., None])[..., 0]
        losses.append((-said * each.mask).sum(1))
        right.append(((logits.argmax(-1) == each.labels) & each.mask).sum(1))
        counts.append(each.mask.sum(1))
    losses_N, right_N, counts_N = (
        torch.cat(parts).double().cpu().numpy() for parts in (losses, right, counts)
    )
    return mean_over_sentences(losses_N, counts_N), mean_over_sentences(right_N, counts_N)


def _in_order(model: torch.nn.Module, examples: Examples) -> Iterator[Batch]:
    device = next(model.parameters()).device
    return Batches(examples, BATCH, seed=None, device=device).epoch(0)


def mean_over_sentences(sums_N: np.ndarray, counts_N: np.ndarray) -> Estimate:
    """Return Σ sums / Σ counts with an interval that takes sentences as independent.

    The variance of a ratio by linearisation (Cochran, Sampling Techniques, 1977, section 6.3).
    """
    mean = float(sums_N.sum() / counts_N.sum())
    if len(sums_N) < 2:
        return Estimate(mean)
    apart = sums_N - mean * counts_N
    share = len(sums_N) / (len(sums_N) - 1)
    error = NORMAL * float(np.sqrt(share * (apart**2).sum())) / float(counts_N.sum())
    method = f"normal, over {len(sums_N)} sentences"
    return Estimate(mean, Interval(mean - error, mean + error, 0.95, method))


def _count(examples: Examples) -> int:
    return int((examples.inputs[:, 1:] >= 0).sum())
