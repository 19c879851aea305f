"""Errors of distillens. Each message is one line: what happened, the value seen, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class DistillensError(Exception):
    """Base of all errors that a user can act on; the command line prints its line and exits with 2."""


class RecipeError(DistillensError):
    """A recipe, an override or an option that is invalid."""


class DataError(DistillensError):
    """Examples, labels or arrays that are missing, damaged or do not fit each other."""


class ModelError(DistillensError):
    """A model that cannot be built, or whose outputs do not fit the task."""


class CheckpointError(DistillensError):
    """Weights or a training state that cannot be read or belong to something else."""


class SupervisionError(DistillensError):
    """A supervision that is not defined: a temperature, a mixing weight, a teacher that does not fit."""


class TrainingError(DistillensError):
    """A training that had to stop, for example because the loss is no longer finite."""


class DivergenceError(TrainingError):
    """A training whose loss or weights are no longer finite."""


class DeviceError(DistillensError):
    """A device that does not exist, lacks memory or lacks an implementation of an operation."""


class RunError(DistillensError):
    """A run folder that is incomplete, belongs to another recipe or was changed by other programs."""


class MeasureError(DistillensError):
    """A measure that is not defined for the arrays it was given."""


class TheoryError(DistillensError):
    """A closed form that is not defined for the numbers it was given, or a study that does not exist."""


class KernelError(DistillensError):
    """A kernel matrix that cannot be computed or solved as requested."""


class RemovedNameError(DistillensError, AttributeError):
    """A name that an earlier version had; the message names its replacement."""


REMOVED_NAMES = {
    "StudyResult.complexity": 'OpenRun.open(folder).records("complexity")',
    "StudyResult.deviations": 'OpenRun.open(folder).records("confidence")',
    "distillens.audit_run": 'distillens.measure_run(folder, "confidence")',
    "distillens.deviation": "distillens.audit",
    "distillens.measure_settings": "distillens.compare",
    "distillens.measures.deviation": "distillens.audit",
    "distillens.models.BUILDERS": "distillens.models.MODELS",
    "distillens.supervision.SupervisionRecipe": "distillens.supervision.AnySupervision",
    "distillens.measures.RandomLabelReference": "distillens.measures.random_target_level",
    "distillens.measures.random_label_reference": "distillens.measures.random_target_level",
    "distillens.measures.phi_from_probabilities": "distillens.measures.phi_from_logits with log p",
}
"""Documented names of earlier versions, with their replacements."""


def missing_name(module: str, name: str) -> AttributeError:
    """Return the error for a name that a module or class does not have, for its ``__getattr__``."""
    replacement = REMOVED_NAMES.get(f"{module}.{name}")
    if replacement is None:
        return AttributeError(f"{module!r} has no attribute {name!r}")
    return RemovedNameError(f"{module}.{name} was removed; use {replacement}")


def one_line(error: BaseException) -> str:
    """Return the text of an exception on one line, or the name of its type if it has no text."""
    return " ".join(str(error).split()) or type(error).__name__


EPOCHS_LISTED = 8
"""Largest number of epochs that a message lists in full."""


def listed(epochs: Sequence[int]) -> str:
    """Return epochs as words: ``"0, 4, 8 and 10"``, or ``"0, 1, 2, 3, …, 256"`` if there are many."""
    if len(epochs) > EPOCHS_LISTED:
        return f"{', '.join(map(str, epochs[:4]))}, …, {epochs[-1]}"
    words = [str(epoch) for epoch in epochs]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


SHOWN = 30
"""Largest number of known words that an error lists."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest known word, or the list of known words."""
    words = sorted(known)
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    if not words:
        return "; there is none"
    return f"; known: {', '.join(words[:SHOWN])}{', …' if len(words) > SHOWN else ''}"
