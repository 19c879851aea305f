"""Distil language models: a teacher and students that predict each next token.

The supervisions are those of any study; logits have shape (B, T, C) with a mask, and an audit takes
each token for an example. Shapes: B sentences, T positions, C tokens of the vocabulary.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from distillens.data import Batches, Splits, load_splits
from distillens.data.tokens.next_tokens import NextTokens
from distillens.errors import RecipeError, RunError
from distillens.files.arrays import Rows
from distillens.files.atomic import write_atomically
from distillens.measures import audit
from distillens.models import LanguageModel, count_parameters, load_weights
from distillens.progress import Progress, silent
from distillens.results.base import SCHEMA, from_json, to_json
from distillens.results.confidence import Audit
from distillens.results.language import LanguageModelResult, LanguageStudy, TokenAudit
from distillens.runs.folder import locked, open_run
from distillens.runs.layout import NetworkFiles, Run, slug
from distillens.runs.read import read_json
from distillens.study.language_models.recipe import (
    LanguagePart,
    LanguageRecipe,
    language_recipe_of_today,
)
from distillens.study.language_models.token_outputs import (
    count_tokens,
    evaluate_tokens,
    first_tokens,
    token_logits,
)
from distillens.supervision import (
    FixedTeacher,
    OneHot,
    Setting,
    Supervision,
    Teacher,
    TeacherCheckpoint,
    build_supervision,
)
from distillens.training import TrainingRecipe, accelerator_for, fit


def run_language(
    recipe: LanguageRecipe, out: str | Path | None = None, *, progress: Progress = silent
) -> LanguageStudy:
    """Train a teacher and students of next tokens, and audit the students token by token.

    A run that was interrupted goes on where it was.

    Parameters
    ----------
    recipe
        See `distillens.study.language_models.recipe`.
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
    run = open_run(folder, recipe.model_dump(mode="json"), language_recipe_of_today, grows=False)
    with locked(run):
        return _Study(recipe, run, load_splits(recipe.data), progress).train_and_audit()


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
        return [
            TeacherCheckpoint(epoch * self.steps, partial(self._at, epoch), epoch)
            for epoch in self.study.recipe.teacher.training.kept_epochs[1:]
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

    def train_and_audit(self) -> LanguageStudy:
        recipe, run = self.recipe, self.run
        self._bind_data()
        models = [self._train("teacher", run.teacher, recipe.teacher, recipe.teacher_seed, OneHot)]
        audits = []
        for seed in recipe.seeds:
            lone = None
            # Labels first: their student is what the others are compared with.
            for place, entry in sorted(
                enumerate(recipe.supervisions), key=lambda one: not one[1].is_baseline
            ):
                files = run.student(place, entry.title, seed)
                build = partial(self._supervision, entry)
                models.append(self._train(entry.title, files, recipe.student, seed, build))
                lone = lone or (files if entry.is_baseline else None)
                audits.append(TokenAudit(entry.title, seed, self._audit(files, lone)))
        train, test = self.splits.train, self.splits.test
        result = LanguageStudy(
            schema_version=SCHEMA,
            name=recipe.name,
            description=recipe.description,
            vocabulary=train.vocabularies[0],
            train_sentences=len(train),
            train_tokens=count_tokens(train),
            test_sentences=len(test),
            test_tokens=count_tokens(test),
            models=tuple(models),
            audits=tuple(audits),
            versions={"python": platform.python_version(), "torch": str(torch.__version__)},
        )
        write_atomically(run.language, to_json(result))
        return result

    def load(self, part: LanguagePart, files: NetworkFiles, epoch: int) -> LanguageModel:
        """Return a model with the weights that it had after an epoch."""
        model = self._build(part, 0)
        load_weights(files.kept_weights(epoch), model)
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
        loss, accuracy = evaluate_tokens(model, self.splits.test)
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
            listed_departures=0,
        )

    def _bind_data(self) -> None:
        path, found = self.run.data, {"fingerprint": self.splits.fingerprint}
        if path.is_file():
            if read_json(path) != found:
                raise RunError(f"{self.run.folder} was made from other data; choose another --out")
            return
        write_atomically(self.run.tokenizer(0), self.splits.tokenizers[0])
        write_atomically(path, json.dumps(found) + "\n")
