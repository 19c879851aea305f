"""Recipes of language models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from distillens.study.recipe import RECIPES, ComplexityRecipe, Recipe
from distillens.supervision.recipe import parts_of

if TYPE_CHECKING:
    from distillens.study.task import Task

MODEL = "causal-transformer"
"""The model of a recipe that names none."""


@RECIPES.register("language")
class LanguageRecipe(Recipe):
    """A study of language models, which predict each next token.

    ``data`` is text with one tokenizer; its labels are not used. Models are causal transformers
    (`distillens.models.architectures.transformer.LanguageModel`), or models of yours that give logits
    (B, T, V) for tokens (B, T). ``audited_tokens`` bounds the tokens of a split that are audited: those
    of its first sentences, as many whole sentences as fit.
    """

    unavailable: ClassVar[Mapping[str, str]] = {
        name: f"{words} not available for language models; {advice}"
        for name, words, advice in (
            ("complexity", "complexity is", "leave it out"),
            ("kernels", "kernels are", "measure confidence instead"),
            ("over-training", "over-training is", "measure confidence instead"),
            ("eigenspace", "eigenspace is", "give runs of classifiers"),
            ("export", "exports are", "the run holds the weights as safetensors"),
            ("check", "`distillens check` is", "use `distillens run`"),
            ("plan", "--plan is", "leave it out"),
            (
                "several processes",
                "training by several processes is",
                "start it without a launcher",
            ),
        )
    }

    kind: Literal["language"] = "language"
    complexity: ComplexityRecipe | None = None
    audited_tokens: int = Field(default=5000, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _models_have_a_default(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        if "teacher_seed" in values:
            raise ValueError("teacher_seed was replaced by teacher.seed")
        for role in ("teacher", "student"):
            part = values.get(role)
            if isinstance(part, dict) and isinstance(part.get("model"), dict):
                values = {**values, role: {**part, "model": {"name": MODEL, **part["model"]}}}
        return values

    @model_validator(mode="after")
    def _fits_tokens(self) -> LanguageRecipe:
        if len(self.data.tokenizers) != 1:
            raise ValueError("a language model needs data of source text with one tokenizer")
        if self.data.label_noise or self.data.groups:
            raise ValueError(
                "a language model does not use the labels of the data; leave data.label_noise and "
                "data.groups out"
            )
        if self.teacher.training is None:
            raise ValueError(
                "the teacher of language models is trained here; give teacher.model and "
                "teacher.training"
            )
        if self.complexity is not None:
            raise ValueError(self.unavailable["complexity"])
        self._refuse_unused_keys()
        for part in (part for entry in self.supervisions for part in parts_of(entry)):
            if getattr(part, "loss", None) is not None:
                raise ValueError(
                    f"{part.title!r}: language models know cross-entropy alone; leave loss out"
                )
        return self

    def task(self) -> Task:
        """Return the task of next tokens."""
        # Imports torch, which a recipe is read without.
        from distillens.study.language_models.task import PredictNextTokens

        return PredictNextTokens(self.audited_tokens)

    def _refuse_unused_keys(self) -> None:
        """Refuse keys that have no effect here, unless they have their defaults."""
        for key in ("loss", "precision", "cache_gigabytes", "cache_on_disk", "cache_top_k"):
            default = type(self).model_fields[key].default
            if (value := getattr(self, key)) != default:
                raise ValueError(
                    f"{key} is {value!r}, but language models are trained with cross-entropy in "
                    f"float32 and their teachers' logits are not cached; leave {key} out"
                )
