"""A teacher that was not trained here: a checkpoint or logits, read and measured before a run exists.

Shapes: N examples, C classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from distillens.array_files import Rows, read_rows
from distillens.data import Examples
from distillens.errors import DataError, MeasureError, ModelError
from distillens.measures.auditing.columns import column_order
from distillens.measures.confidence import look_like_probabilities
from distillens.measures.intervals import wilson_interval
from distillens.models import checkpoint_digest, count_parameters, digest_file, load_weights
from distillens.runs import read_arrays
from distillens.study.networks import Scene, predict_splits
from distillens.study.recipe import TeacherRecipe
from distillens.training import accuracy

ARRAY_SUFFIXES = (".npz", ".safetensors")
"""Files that may hold the logits of all splits, each under the name of its split."""


@dataclass(frozen=True, eq=False)
class GivenTeacher:
    """What a given teacher outputs on the examples of a study.

    Attributes
    ----------
    logits
        By split, (N, C) float32 each.
    digest
        SHA-256 of the file or files that it was read from.
    parameters
        Trainable parameters; 0 where only logits are known.
    note
        How the weights were found in the checkpoint, in a line; empty if as they are.
    """

    logits: Mapping[str, NDArray[np.float32]]
    digest: str
    parameters: int
    note: str = ""


def read_given_teacher(scene: Scene) -> GivenTeacher | None:
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
    recipe = scene.recipe.teacher
    if recipe.checkpoint is None and recipe.logits is None:
        return None
    digest = given_digest(scene)
    if recipe.model is None:
        given = GivenTeacher(_read_logits(scene), digest, 0)
    else:
        network = scene.build(recipe.model, 0, "teacher")
        note = load_checkpoint(recipe, network)
        network.to(scene.accelerator.device).eval()
        logits = predict_splits(scene, network, "teacher")
        given = GivenTeacher(logits, digest, count_parameters(network), note)
    _check_accuracy(scene, given)
    return given


def load_checkpoint(recipe: TeacherRecipe, network: nn.Module) -> str:
    """Load the teacher's checkpoint; return how it was read, in a line, empty if as it is."""
    given = recipe.checkpoint
    assert given is not None
    path = Path(given.path)
    note = load_weights(path, network, key=given.key, strip=given.strip)
    return f"teacher, from {path.name}: {note}" if note else ""


def given_digest(scene: Scene) -> str:
    """Return the digest of the file or files that hold a given teacher.

    Raises
    ------
    DataError
        A file is missing.
    """
    recipe = scene.recipe.teacher
    if recipe.checkpoint is not None:
        return checkpoint_digest(_present(recipe.checkpoint.path, "teacher.checkpoint"))
    if isinstance(recipe.logits, str):
        return digest_file(_present(recipe.logits, "teacher.logits"))
    places = (recipe.logits or {}).items()
    digests = [
        f"{split}={digest_file(_present(place, f'teacher.logits.{split}'))}"
        for split, place in sorted(places)
    ]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _present(place: str, key: str) -> Path:
    path = Path(place.partition("::")[0])
    if not path.is_file():
        raise DataError(f"no file {path}; {key} must name one")
    return path


def _check_accuracy(scene: Scene, given: GivenTeacher) -> None:
    """Show the accuracy of a given teacher; refuse one that knows nothing of the labels."""
    splits, recipe = scene.splits, scene.recipe.teacher
    right, total, shown = 0, 0, []
    counts = np.zeros(len(splits.train.classes), dtype=np.int64)
    for split in ("train", "validation"):
        examples: Examples | None = getattr(splits, split)
        if examples is None:
            continue
        labels = examples.labels.numpy()
        share, known = accuracy(given.logits[split], labels)
        word = "training" if split == "train" else split
        shown.append(f"{100 * share:.1f} % of {len(labels):,} {word} examples")
        right += known
        total += len(labels)
        counts += np.bincount(labels, minlength=len(counts))
    if given.note:
        with scene.progress(given.note, 1) as advance:
            advance(1)
    with scene.progress(f"teacher: right on {' and '.join(shown)}", 1) as advance:
        advance(1)
    interval = wilson_interval(right / total, total)
    majority = counts.max() / total
    if recipe.allow_weak or interval.high > majority:
        return
    name = splits.train.classes[int(counts.argmax())]
    raise ModelError(
        f"the teacher is right on {100 * right / total:.1f} % of the training and validation "
        f"examples (95 % interval up to {100 * interval.high:.1f} %), which is no better than "
        f"always answering {name!r} ({100 * majority:.1f} %); likely causes: it expects inputs "
        "of another normalisation (set teacher.normalisation), its classes are in another order, "
        "the rows of its logits belong to other examples, or the weights belong to another model; "
        "teacher.allow_weak: true uses it all the same"
    )


def _read_logits(scene: Scene) -> dict[str, NDArray[np.float32]]:
    splits = scene.splits
    rows = _rows_of_splits(scene)
    found: dict[str, NDArray[np.float32]] = {}
    for split in ("train", "validation", "test"):
        examples: Examples | None = getattr(splits, split)
        if examples is None:
            continue
        # Validation examples are taken out of the training examples of the source.
        name = split if split in rows else "train"
        if name not in rows:
            raise DataError(
                f"teacher.logits has the splits {sorted(rows)}; a teacher's logits need train and "
                "test"
            )
        what = f"teacher.logits, split {name},"
        given = _by_class(rows[name], examples.classes, what)
        found[split] = _rows_of_examples(given, examples, scene.outputs, what)
    return found


def _rows_of_splits(scene: Scene) -> dict[str, Rows]:
    given = scene.recipe.teacher.logits
    if isinstance(given, str):
        path = Path(given)
        if path.suffix.lower() not in ARRAY_SUFFIXES:
            raise DataError(
                f"{path} holds the logits of one split; give one file for each split, "
                "teacher.logits: {train: FILE, test: FILE}, or one npz or safetensors file with "
                "arrays train and test"
            )
        return _rows_of_one_file(path)
    places = {split: str(place) for split, place in (given or {}).items()}
    found = {split: read_rows(place) for split, place in places.items()}
    for split, rows in found.items():
        if rows.unclear_header:
            raise DataError(
                f"teacher.logits.{split}: the first row of {places[split]} may be a header or "
                "the logits of the first example; name the columns by words, or store it as npy"
            )
    return found


def _rows_of_one_file(path: Path) -> dict[str, Rows]:
    """Return the arrays train, test and validation of a file, with train_index and so on if there."""
    if path.suffix.lower() == ".npz":
        arrays = read_arrays(path, "teacher.logits must name an npz with arrays train and test")
    else:
        from safetensors.torch import load_file

        arrays = {name: tensor.float().numpy() for name, tensor in load_file(path).items()}
    splits = [name for name in ("train", "validation", "test") if name in arrays]
    if not {"train", "test"} <= set(splits):
        raise DataError(
            f"{path} has the arrays {sorted(arrays)}; a teacher's logits need train and test"
        )
    return {name: Rows(arrays[name], arrays.get(f"{name}_index")) for name in splits}


def _by_class(rows: Rows, classes: tuple[str, ...], what: str) -> Rows:
    """Return rows with the columns in the order of the classes, and one column for two classes.

    Columns are matched by name where they have names. The single output of two classes is the
    difference of their logits.
    """
    values = np.asarray(rows.values)
    if values.dtype.kind not in "fiu":
        raise ModelError(f"{what} holds {values.dtype}, not numbers")
    if values.ndim == 2 and look_like_probabilities(values):
        raise ModelError(
            f"{what} holds probabilities: its rows lie within [0, 1] and sum to one; give the outputs "
            "before the softmax, or the logarithms of the probabilities"
        )
    if rows.names is not None and len(rows.names) == len(classes):
        try:
            order_C, _ = column_order(classes, rows.names, "teacher")
        except MeasureError:
            raise DataError(
                f"{what} has the columns {', '.join(rows.names[:5])}, the data have the classes "
                f"{', '.join(classes[:5])}; name the columns as the classes, or store arrays without "
                "names in the order of the classes"
            ) from None
        values = values if order_C is None else values[:, order_C]
    if len(classes) == 2 and values.ndim == 1:
        values = values[:, None]
    elif len(classes) == 2 and values.shape[1:] == (2,):
        values = values[:, 1:].astype(np.float64) - values[:, :1]
    return replace(rows, values=values)


def _rows_of_examples(
    rows: Rows, examples: Examples, outputs: int, what: str
) -> NDArray[np.float32]:
    """Return the (N, C) rows that belong to the examples, in their order.

    With an index they are looked up by it. Without, there must be a row for every example of the
    source, or one for each of the N examples in use in the order of their indices.
    """
    array, wanted = rows.values, examples.indices.numpy()
    if array.ndim != 2 or array.shape[1] != outputs:
        raise ModelError(f"{what} has shape {array.shape}; the task needs (N, {outputs})")
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
    # What is finite in float64 may be too large for the float32 that networks compute in.
    with np.errstate(over="ignore"):
        found = array[places].astype(np.float32)
    if not np.isfinite(found).all():
        raise DataError(f"{what} holds a NaN or, in float32, an infinity")
    return found


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
    order = np.argsort(index, kind="stable")
    ordered = index[order]
    if (twice := np.flatnonzero(ordered[1:] == ordered[:-1])).size:
        raise DataError(f"{what} has the index {ordered[twice[0]]} twice; give each row once")
    places = np.searchsorted(ordered, wanted).clip(max=len(ordered) - 1)
    missing = ordered[places] != wanted
    if missing.any():
        raise DataError(
            f"{what} has no row with index {wanted[missing][0]}, which the data use; "
            f"{missing.sum():,} of {len(wanted):,} examples have none"
        )
    return order[places]
