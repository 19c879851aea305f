"""The context of a study: recipe, run folder, data and accelerator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from accelerate import Accelerator
from torch import nn

from distillens.data import Batches, Normalisation, Splits, load_splits
from distillens.models import ModelRecipe, build_model, load_weights
from distillens.progress import Progress, silent
from distillens.runs.layout import NetworkFiles, Run
from distillens.study.normalisations import InputScale, Role, between, choose_scales
from distillens.study.recipe import Recipe
from distillens.study.task import Task
from distillens.training import Steps, TrainingRecipe


@dataclass(frozen=True)
class StudyContext:
    """Recipe, run folder, data and accelerator, which all networks of a study share."""

    recipe: Recipe
    run: Run
    splits: Splits
    scales: Mapping[str, InputScale]
    """Normalisations of "teacher", "student" and "data"."""
    accelerator: Accelerator
    progress: Progress
    trust_code: bool
    tracked: Steps = field(default_factory=Steps)
    """Epochs of all networks that were logged to trackers."""

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        run: Run,
        accelerator: Accelerator,
        trust_code: bool,
        progress: Progress = silent,
    ) -> StudyContext:
        """Load the data of a recipe, for the run that it makes."""
        if accelerator.num_processes > 1:
            recipe.refuse_unavailable("several processes")
        splits = load_splits(recipe.data)
        scales = choose_scales(recipe, run, splits.train, trust_code=trust_code)
        return cls(recipe, run, splits, scales, accelerator, progress, trust_code)

    def normalisation_of(self, role: Role) -> Normalisation | None:
        """Return the normalisation of a network's inputs; None for none."""
        return self.scales[role].normalisation

    def on_student_inputs(self, teacher: nn.Module) -> nn.Module:
        """Return the teacher as a network that takes inputs normalised as the student's."""
        mine, theirs = (self.normalisation_of(role) for role in ("student", "teacher"))
        return between(mine, theirs, teacher)

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes; under a launcher there are several."""
        return self.accelerator.is_main_process

    @property
    def outputs(self) -> int:
        """Number of outputs of every network: one for two classes, else one per class."""
        return 1 if self.classes == 2 else self.classes

    @property
    def classes(self) -> int:
        """Number of classes that a prediction chooses from."""
        return self.task.classes(self.splits)

    @property
    def task(self) -> Task:
        """The task of the networks: classes of examples, or next tokens."""
        return self.recipe.task()

    @property
    def top_k(self) -> int | None:
        """Number of teacher logits kept per example; None for all."""
        asked = self.recipe.cache_top_k
        return asked if asked is not None and asked < self.outputs else None

    def build(self, model: ModelRecipe, seed: int, role: Role = "student") -> nn.Module:
        """Build a freshly initialised network for these examples."""
        train = self.splits.train
        return build_model(
            model,
            train.input_shape,
            self.outputs,
            seed=seed,
            vocabularies=train.vocabularies,
            normalisation=self.scales[role].numbers,
            trust_code=self.trust_code,
            every_position=self.task.every_position,
        )

    def load(
        self, model: ModelRecipe, files: NetworkFiles, epoch: int, role: Role = "student"
    ) -> nn.Module:
        """Build a network with the weights that it had after an epoch."""
        network = self.build(model, 0, role)
        load_weights(files.kept_weights(epoch), network)
        return network.to(self.accelerator.device).eval()

    def batches(self, training: TrainingRecipe, seed: int, role: Role = "student") -> Batches:
        """Return the training batches in the order of a seed, normalised for a network."""
        return Batches(
            self.splits.train,
            training.batch_size,
            normalisation=self.normalisation_of(role),
            augmentation=self.recipe.data.augmentation,
            seed=seed,
            device=self.accelerator.device,
            channels_last=True,
            rank=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
        )
