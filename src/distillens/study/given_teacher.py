"""A teacher given as a checkpoint or as logits, read and measured before a run exists.

Shapes: N examples, C classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from distillens.data import Examples
from distillens.errors import DataError, MeasureError, ModelError
from distillens.files.arrays import read_rows
from distillens.files.tables import Rows
from distillens.measures.confidence.columns import column_order
from distillens.measures.statistics.intervals import wilson_interval
from distillens.models import checkpoint_digest, count_parameters, digest_file, load_weights
from distillens.runs.read import read_arrays
from distillens.study.context import StudyContext
from distillens.study.networks import predict_splits
from distillens.study.reading import missing_files
from distillens.study.recipe import TeacherRecipe
from distillens.training import accuracy


@dataclass(frozen=True, eq=False)
class GivenTeacher:
    """Outputs of a given teacher on the examples of a study.

    Attributes
    ----------
    logits
        By split, (N, C) float32 each.
    digest
        SHA-256 of the file or files that it was read from.
    parameters
        Trainable parameters; 0 where only logits are known.
    note
        One-line note on how the weights were found in the checkpoint, or how the given logits were
        converted; empty if as they are.
    """

    logits: Mapping[str, NDArray[np.float32]]
    digest: str
    parameters: int
    note: str = ""


def read_given_teacher(context: StudyContext) -> GivenTeacher | None:
    """Read the teacher that a recipe gives as a checkpoint or as logits, and measure its accuracy.

    Nothing is written. Returns None for a teacher that is trained here or in another run.

    Raises
    ------
    DataError, ModelError, CheckpointError
        A file is missing or does not fit the examples or the classes.
    ModelError
        The teacher is not better than naming the most frequent class, unless the recipe sets
        ``teacher.allow_weak``.
    """
    recipe = context.recipe.teacher
    if recipe.checkpoint is None and recipe.logits is None:
        return None
    digest, parameters = given_digest(context), 0
    if recipe.model is None:
        logits, notes = _read_logits(context)
    else:
        network = context.build(recipe.model, 0, "teacher")
        notes = [note] if (note := load_checkpoint(recipe, network)) else []
        network.to(context.accelerator.device).eval()
        logits = predict_splits(context, network, "teacher")
        parameters = count_parameters(network)
    notes += _check_accuracy(context, logits, "; ".join(notes))
    return GivenTeacher(logits, digest, parameters, "; ".join(notes))


def load_checkpoint(recipe: TeacherRecipe, network: nn.Module) -> str:
    """Load the teacher's checkpoint; return how it was read, in a line, empty if as it is."""
    given = recipe.checkpoint
    assert given is not None
    path = Path(given.path)
    note = load_weights(path, network, key=given.key, strip=given.strip)
    return f"teacher, from {path.name}: {note}" if note else ""


def given_digest(context: StudyContext) -> str:
    """Return the digest of the file or files that hold a given teacher.

    Raises
    ------
    DataError
        A file is missing.
    """
    recipe = context.recipe.teacher
    for _, problem in missing_files(recipe):
        raise DataError(problem)
    files = recipe.given_files
    if recipe.checkpoint is not None:
        return checkpoint_digest(files["teacher.checkpoint"])
    digests = {key.rpartition(".")[2]: digest_file(path) for key, path in sorted(files.items())}
    if isinstance(recipe.logits, str):
        return digests["logits"]
    return hashlib.sha256("\n".join(f"{k}={v}" for k, v in digests.items()).encode()).hexdigest()


def _check_accuracy(
    context: StudyContext, logits: Mapping[str, NDArray[np.float32]], note: str
) -> list[str]:
    """Show the accuracy of a given teacher; refuse one that is no better than a constant prediction.

    Returns a note if the teacher is not measurably better than naming the most frequent class.
    ``note`` is shown before the accuracy.
    """
    classes = context.splits.train.classes
    right, total, shown = 0, 0, []
    counts = np.zeros(len(classes), dtype=np.int64)
    for split, word in (("train", "training"), ("validation", "validation")):
        if split not in logits:
            continue
        labels = getattr(context.splits, split).labels.numpy()
        share, known = accuracy(logits[split], labels)
        shown.append(f"{100 * share:.1f} % of {len(labels):,} {word} examples")
        right += known
        total += len(labels)
        counts += np.bincount(labels, minlength=len(counts))
    if note:
        _show(context, note)
    _show(context, f"teacher: right on {' and '.join(shown)}")
    interval = wilson_interval(right / total, total)
    majority = counts.max() / total
    if interval.low > majority:
        return []
    answer = f"always answering {classes[int(counts.argmax())]!r} ({100 * majority:.1f} %)"
    measured = (
        f"the teacher is right on {100 * right / total:.1f} % of the training and validation examples "
        f"(95 % interval {100 * interval.low:.1f} to {100 * interval.high:.1f} %), which is"
    )
    if not context.recipe.teacher.allow_weak and interval.high <= majority:
        raise ModelError(
            f"{measured} no better than {answer}; likely causes: it expects inputs "
            "of another normalisation (set teacher.normalisation), its classes are in another order, "
            "the rows of its logits belong to other examples, or the weights belong to another model; "
            "teacher.allow_weak: true uses it all the same"
        )
    doubt = (
        f"{measured} not measurably better than {answer}; check its normalisation and its classes"
    )
    _show(context, doubt)
    return [doubt]


def _show(context: StudyContext, text: str) -> None:
    with context.progress(text, 1) as advance:
        advance(1)


def _read_logits(context: StudyContext) -> tuple[dict[str, NDArray[np.float32]], list[str]]:
    """Return the logits of every split, and notes on their conversion."""
    splits = context.splits
    notes: list[str] = []
    rows = _rows_of_splits(context.recipe.teacher.logits or {})
    found: dict[str, NDArray[np.float32]] = {}
    for split in ("train", "validation", "test"):
        examples: Examples | None = getattr(splits, split)
        if examples is None:
            continue
        # Validation examples are taken out of the training examples of the source.
        name = split if split in rows else "train"
        what = f"teacher.logits, split {name},"
        found[split], done = _rows_of_examples(rows[name], examples, context.outputs, what)
        notes += [note for note in done if note not in notes]
    return found, notes


def _rows_of_splits(given: str | Mapping[Any, str]) -> dict[str, Rows]:
    """Return the rows of the splits train, test and, where there is one, validation.

    One file holds arrays of these names, and their indices as train_index and so on if there.
    """
    if not isinstance(given, str):
        found = {split: read_rows(place) for split, place in given.items()}
        for split, rows in found.items():
            if rows.unclear_header:
                raise DataError(
                    f"teacher.logits.{split}: the first row of {given[split]} may be a header or the "
                    "logits of the first example; name the columns by words, or store it as npy"
                )
        return found
    path = Path(given)
    if path.suffix.lower() == ".npz":
        arrays = read_arrays(path, "teacher.logits must name an npz with arrays train and test")
    elif path.suffix.lower() == ".safetensors":
        from safetensors.torch import load_file

        arrays = {name: tensor.float().numpy() for name, tensor in load_file(path).items()}
    else:
        raise DataError(
            f"{path} holds the logits of one split; give one file for each split, "
            "teacher.logits: {train: FILE, test: FILE}, or one npz or safetensors file with "
            "arrays train and test"
        )
    if not {"train", "test"} <= set(arrays):
        raise DataError(
            f"{path} has the arrays {sorted(arrays)}; a teacher's logits need train and test"
        )
    splits = [name for name in ("train", "validation", "test") if name in arrays]
    return {name: Rows(arrays[name], arrays.get(f"{name}_index")) for name in splits}


def _rows_of_examples(
    rows: Rows, examples: Examples, outputs: int, what: str
) -> tuple[NDArray[np.float32], list[str]]:
    """Return the (N, C) logits of the examples in their order, and a note on their conversion.

    With an index the rows are looked up by it. Without, there must be a row for every example of the
    source, or one for each of the N examples in use in the order of their indices.
    """
    array, wanted = np.asarray(rows.values), examples.indices.numpy()
    if array.dtype.kind not in "fiu":
        raise ModelError(f"{what} holds {array.dtype}, not numbers")
    if array.ndim == 1 and outputs == 1:
        array = array[:, None]
    widths = (1, 2) if outputs == 1 else (outputs,)
    if array.ndim != 2 or array.shape[1] not in widths:
        shapes = " or ".join(f"(N, {width})" for width in widths)
        raise ModelError(f"{what} has shape {array.shape}; the task needs {shapes}")
    if rows.index is not None:
        places = _places(rows.index, wanted, what)
    elif len(array) > wanted.max():
        places = wanted
    elif len(array) == len(wanted):
        places = np.argsort(np.argsort(wanted))
    else:
        raise DataError(
            f"{what} has {len(array)} rows, but {len(wanted)} examples are used, up to number "
            f"{wanted.max()} of the source; give a row for every example of the source, a row for "
            "every example in use, or an index"
        )
    values, notes = _as_logits(array[places], rows.names, examples.classes, what)
    # A value that is finite in float64 may overflow float32.
    with np.errstate(over="ignore"):
        found = values.astype(np.float32)
    if not np.isfinite(found).all():
        raise DataError(f"{what} holds a NaN or, in float32, an infinity")
    return found, notes


def _as_logits(
    array: NDArray, names: tuple[str, ...] | None, classes: tuple[str, ...], what: str
) -> tuple[NDArray, list[str]]:
    """Return given numbers as logits in the order of the classes: one column for two classes.

    Columns that are named by the classes are put in their order. Probabilities, which are rows
    between 0 and 1 that sum to 1, are replaced by their logarithms, of which the softmax is the
    probabilities at every temperature.
    """
    notes = []
    if names is not None and len(names) == len(classes) == array.shape[1]:
        try:
            order_C, _ = column_order(classes, names, "teacher")
        except MeasureError:
            raise DataError(
                f"{what} has the columns {', '.join(names[:5])}, the data have the classes "
                f"{', '.join(classes[:5])}; name the columns as the classes, or store arrays without "
                "names in the order of the classes"
            ) from None
        if order_C is not None and list(order_C) != list(range(len(classes))):
            array = array[:, order_C]
            notes.append(
                "teacher.logits: columns were put in the order of the classes by their names"
            )
    between = bool(((array >= 0) & (array <= 1)).all())
    if between and array.shape[1] == 1:
        raise DataError(
            f"{what} has values between 0 and 1 only, which are probabilities or predicted classes "
            "instead of logits; give logits, log(p / (1 - p)), or a column for each class"
        )
    if between and np.allclose(array.sum(axis=1, dtype=np.float64), 1, rtol=0, atol=0.01):
        if not array.all():
            raise DataError(
                f"{what} holds probabilities, some of which are 0, so their logits are not known; "
                "give logits or logarithms of probabilities"
            )
        array = np.log(array.astype(np.float64))
        notes.append("teacher.logits: probabilities were replaced by their logarithms")
    if len(classes) == 2 and array.shape[1] == 2:
        array = array[:, 1:].astype(np.float64) - array[:, :1]
        notes.append("teacher.logits: two logits were replaced by their difference")
    return array, notes


def _places(index: NDArray, wanted: NDArray[np.int64], what: str) -> NDArray[np.int64]:
    """Return the place of each wanted index among the given ones."""
    if index.dtype.kind not in "iu":
        try:
            index = index.astype(np.int64)
        except ValueError:
            raise DataError(
                f"{what} has the index {index.dtype}, first {index[0]!r}; the examples of a recipe "
                "are numbered from 0 in the order of their source"
            ) from None
    import pandas as pd

    there = pd.Index(index)
    if (twice := there[there.duplicated()]).size:
        raise DataError(f"{what} has the index {twice.min()} twice; give each row once")
    places = there.get_indexer(wanted)
    missing = places < 0
    if missing.any():
        raise DataError(
            f"{what} has no row with index {wanted[missing][0]}, which the data use; "
            f"{missing.sum():,} of {len(wanted):,} examples have none"
        )
    return places
