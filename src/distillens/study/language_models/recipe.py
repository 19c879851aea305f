"""Recipes of language models: one teacher, one student, several supervisions and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from distillens.data import DataRecipe
from distillens.errors import RecipeError
from distillens.study.reading import load_recipe, override_key, with_periods
from distillens.study.recipe import trajectory_problem
from distillens.supervision import AnySupervision, parts_of
from distillens.training import TrainingRecipe


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
    supervisions: tuple[AnySupervision, ...] = Field(min_length=1)
    audited_tokens: int = Field(default=5000, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> LanguageRecipe:
        if len(self.data.tokenizers) != 1:
            raise ValueError("a language model needs data of source text with one tokenizer")
        titles = [entry.title for entry in self.supervisions]
        if len(set(titles)) < len(titles):
            raise ValueError("two supervisions have one name; give one another name")
        for entry in self.supervisions:
            if unfit := entry.needs() & {"co-trained teacher", "previous student"}:
                raise ValueError(
                    f"a language model cannot have {entry.title!r}, which needs a {min(unfit)}; "
                    "use a supervision by labels or by the finished teacher and its checkpoints"
                )
            if entry.seeds is not None:
                raise ValueError("supervisions of language models take all seeds; leave seeds out")
            for part in parts_of(entry):
                if getattr(part, "loss", None) is not None:
                    raise ValueError("tokens know cross-entropy alone; leave loss out")
                stop = getattr(part, "early_stop", None)
                if stop == "validation":
                    raise ValueError("a language model's early_stop names an epoch")
                if problem := trajectory_problem(part, self.teacher.training):
                    raise ValueError(problem)
        return self


def language_recipe_of_today(content: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe that a run holds with the keys that have come since, at their defaults."""
    try:
        return with_periods(LanguageRecipe.model_validate(content).model_dump(mode="json"))
    except ValidationError:
        return content


def read_language_recipe(where: str | Path, overrides: Sequence[str] = ()) -> LanguageRecipe:
    """Read a recipe of kind "language", a YAML file or a shipped name, with ``key=value`` overrides.

    Raises
    ------
    RecipeError
        As `distillens.read_recipe`.
    """
    content = load_recipe(where)
    if content.get("kind") != "language":
        raise RecipeError(f"{where} is no recipe of language models, which have kind: language")
    for each in overrides:
        override_key(content, each)
    try:
        return LanguageRecipe.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        text = first["msg"].removeprefix("Value error, ")
        raise RecipeError(f"{place or 'the recipe'}: {text}") from None
