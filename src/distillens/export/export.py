"""Export a student of a run: weights and programs that run without distillens, each checked.

Programs (torch.export, ONNX) hold the normalisation: they take float32 inputs of shape
(N, \\*input_shape) as the data have them, pictures in [0, 1] (bytes divided by 255). The safetensors
file holds the network alone; ``model.json`` in the same folder gives the normalisation of its inputs.
Networks of text take int64 tokens of the tokenizer in the same folder.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distillens.data import load_splits, vocabulary_of
from distillens.errors import CheckpointError, DataError, ModelError, RecipeError, RunError, nearest
from distillens.export import programs
from distillens.export.choosing import Choice, choose
from distillens.export.inputs import ExportInputs, Normalised
from distillens.export.programs import Program
from distillens.files.atomic import write_atomically
from distillens.models import ModelRecipe, build_model, digest_file, load_weights, save_weights
from distillens.results.base import SCHEMA, from_json, to_json
from distillens.results.export import Export, ExportedFile
from distillens.runs.folder import latest_recipe
from distillens.runs.layout import NetworkFiles, Run, slug
from distillens.runs.open import OpenRun
from distillens.runs.read import read_json
from distillens.study.networks import network_logits
from distillens.study.reading import read_recipe
from distillens.study.recipe import Recipe

FILES = {"safetensors": "model.safetensors", "torch": "model.pt2", "onnx": "model.onnx"}
"""Formats and the names of their files."""
CARD = "model.json"

TOLERANCE = 1e-4
"""Tolerance between a file and the network, as a share of the largest output, in float32."""
STORED_TOLERANCE = 1e-2
"""Tolerance between the network and the stored logits, which a GPU may compute in TF32."""
STORED_EXAMPLES = 128


@dataclass(frozen=True)
class _Probe:
    """Inputs that every file is checked on, the network's outputs, and stored logits of some of them."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    stored: Tensor | None
    """Logits of the last of ``inputs``; None if the run's data are not available."""
    notes: tuple[str, ...] = ()
    """The reason why there are no stored logits."""


def export_run(
    folder: str | Path,
    *,
    student: str | None = None,
    seed: int | None = None,
    formats: Sequence[str] = ("safetensors", "torch"),
    out: str | Path | None = None,
    trust_code: bool = False,
) -> Export:
    """Export a trained student's last checkpoint in several formats, and check each file.

    Every file is read back and compared with the network on random inputs (two batch sizes) and on
    training examples whose logits the run stored; labels are not used.

    Parameters
    ----------
    folder
        A run folder.
    student
        The supervision's name in the recipe. None takes the one with the highest validation accuracy
        (mean over seeds); a run without validation examples needs a name, unless it has only one.
    seed
        None takes the seed with the highest validation accuracy, else the recipe's first.
    formats
        Any of "safetensors", "torch" and "onnx".
    out
        Output folder; by default ``exports/<study>-<student>-seed-<s>``.
    trust_code
        Allow a ``module:function`` model.

    Raises
    ------
    RunError
        The run or the student is not finished, or ``out`` holds another network's export.
    RecipeError
        A format or a student has no such name.
    CheckpointError
        The checkpoint is missing, changed, or disagrees with the stored logits.
    ModelError
        The network cannot be written in a format, or a file that was read back gives other outputs.
    """
    for name in formats:
        if name not in FILES:
            raise RecipeError(f"no format {name!r}{nearest(name, FILES)}")
    if not formats:
        raise RecipeError(f"no format is named; name some of {', '.join(FILES)}")
    if "onnx" in formats:
        programs.check_onnx()
    opened = OpenRun.open(folder, unfinished=True)
    run = opened.files
    recipe = read_recipe(latest_recipe(run), trust_code=trust_code)
    recipe.refuse_unavailable("export")
    choice = choose(opened, student, seed)
    accepted = ExportInputs.of(recipe.student.model, opened.data)
    tokenizers = _tokenizers(run, accepted)
    card = _card(recipe, choice, opened, accepted, tokenizers)
    files = opened.network(choice.cell.id)
    described = "the run's results describe; run the recipe again in another --out"
    weights = _unchanged(files.weights(card.epoch), card.weights_digest, described)
    rebuilt = partial(_network, card, trust_code=trust_code, code=recipe.student.model.code_folder)
    network = rebuilt(weights)
    probe = _probe(recipe, network, files, opened.data["fingerprint"], accepted, tokenizers)
    target = _target(Path(out) if out is not None else default_folder(card), card)
    written = [
        _export_file(target / FILES[name], name, network, rebuilt, probe)
        for name in dict.fromkeys(formats)
    ]
    for name, text in zip(card.tokenizers, tokenizers, strict=True):
        write_atomically(target / name, text)
    finished = replace(card, files=tuple(written), notes=probe.notes)
    # Written last, because it marks the export as complete.
    write_atomically(target / CARD, to_json(finished))
    return finished


def load_export(folder: str | Path, *, trust_code: bool = False) -> tuple[nn.Module, Export]:
    """Rebuild an exported network from its safetensors file and ``model.json``.

    With ``trust_code`` a ``module:function`` model is imported from the folder or Python's path.

    Returns
    -------
    The network in evaluation mode, with its normalisation where it takes numbers, and its description.

    Raises
    ------
    RunError
        The folder holds no export.
    CheckpointError
        It holds no safetensors file, or another one than ``model.json`` describes; or tokenizers.
    """
    path = Path(folder) / CARD
    if not path.is_file():
        raise RunError(f"{folder} is no export: it has no {CARD}")
    card = from_json(Export, path.read_bytes(), str(path), "export it again")
    described = next((file for file in card.files if file.format == "safetensors"), None)
    if described is None:
        raise CheckpointError(f"{folder} holds no safetensors file; export it with that format")
    by_card = f"{CARD} describes; export it again"
    weights = _unchanged(Path(folder) / FILES["safetensors"], described.digest, by_card)
    for name, digest in zip(card.tokenizers, card.tokenizer_digests, strict=True):
        _unchanged(Path(folder) / name, digest, by_card)
    return _network(card, weights, trust_code=trust_code, code=Path(folder).resolve()), card


def default_folder(card: Export) -> Path:
    """Return the default folder of an exported network."""
    return Path("exports") / f"{slug(card.study)}-{slug(card.student)}-seed-{card.seed}"


def _unchanged(path: Path, digest: str, described: str) -> Path:
    """Return the path of a file whose content has the digest that something describes."""
    if not path.is_file() or digest_file(path) != digest:
        raise CheckpointError(f"{path} is missing or not what {described}")
    return path


def _normalisation(run: OpenRun) -> Mapping[str, Any]:
    """Return mean and deviation of the student's inputs, which are empty for text."""
    if run.data.get("vocabularies"):
        return {"mean": (), "deviation": ()}
    # Earlier versions normalised the inputs of all networks in one way.
    found = run.data.get("student_normalisation") or run.data.get("normalisation")
    if found is None or run.data.get("input_type") is None:
        raise RunError(
            f"{run.files.data} does not hold the normalisation, since an earlier version wrote it; run "
            "the recipe again with the same --out, which trains nothing anew and adds it"
        )
    return found


def _tokenizers(run: Run, accepted: ExportInputs) -> tuple[str, ...]:
    """Read the tokenizers of a run that an export needs."""
    found = []
    for place in accepted.tokenizers:
        path = run.tokenizer(place)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RunError(
                f"{path} cannot be read ({error}); run the recipe again in another --out"
            ) from None
        if vocabulary_of(text) != accepted.vocabularies[place]:
            raise RunError(
                f"{path} is not the tokenizer that the run was made with; run the recipe again in "
                "another --out"
            )
        found.append(text)
    return tuple(found)


def _card(
    recipe: Recipe,
    choice: Choice,
    run: OpenRun,
    accepted: ExportInputs,
    tokenizers: tuple[str, ...],
) -> Export:
    normalisation = _normalisation(run)
    return Export(
        schema_version=SCHEMA,
        study=recipe.name,
        student=choice.cell.supervision,
        seed=choice.cell.seed,
        epoch=choice.cell.epochs,
        chosen_by=choice.why,
        model=recipe.student.model.model_dump(mode="json"),
        input_shape=accepted.shape,
        inputs=accepted.described,
        mean=tuple(normalisation["mean"]),
        deviation=tuple(normalisation["deviation"]),
        classes=tuple(run.data["classes"]),
        outputs=_outputs(recipe.loss, run.data["classes"]),
        weights_digest=choice.cell.weights_digest,
        tolerance=TOLERANCE,
        stored_tolerance=STORED_TOLERANCE,
        files=(),
        versions={"python": platform.python_version(), "torch": str(torch.__version__)},
        vocabularies=accepted.vocabularies,
        tokenizers=accepted.files,
        tokenizer_digests=tuple(hashlib.sha256(text.encode()).hexdigest() for text in tokenizers),
    )


def _outputs(loss: str, classes: list[str]) -> str:
    if loss == "cross-entropy":
        if len(classes) == 2:
            return f"(N, 1) logits: the sigmoid is the probability of {classes[1]!r}"
        return "(N, classes) logits: the softmax gives probabilities"
    if len(classes) == 2:
        return f"(N, 1) estimates of 2p - 1, p the probability of {classes[1]!r} (squared error)"
    return "(N, classes) estimates of the probabilities, not held to [0, 1] (squared error)"


def _network(card: Export, weights: Path, *, trust_code: bool, code: Path | None) -> nn.Module:
    model = ModelRecipe.model_validate(card.model)
    model.look_in(code)
    outputs = 1 if len(card.classes) == 2 else len(card.classes)
    network = build_model(
        model,
        card.input_shape,
        outputs,
        seed=0,
        vocabularies=card.vocabularies,
        normalisation=None if card.vocabularies else (card.mean, card.deviation),
        trust_code=trust_code,
    )
    load_weights(weights, network)
    if not card.vocabularies:
        shape = (1, -1, *[1] * (len(card.input_shape) - 1))
        scale = (torch.tensor(each).reshape(shape) for each in (card.mean, card.deviation))
        network = Normalised(network, *scale)
    return network.requires_grad_(False).eval()


def _probe(
    recipe: Recipe,
    network: nn.Module,
    files: NetworkFiles,
    fingerprint: str,
    accepted: ExportInputs,
    tokenizers: tuple[str, ...],
) -> _Probe:
    generator = torch.Generator().manual_seed(0)
    # Two sizes reveal a program that only accepts the batch size it was traced with.
    inputs = [accepted.random(count, network, generator) for count in (1, 5)]
    stored, notes = None, ()
    try:
        splits = load_splits(recipe.data)
        if splits.fingerprint != fingerprint:
            raise DataError("the data differ from those that the run was made with")
    except DataError as error:
        notes = (f"not compared with the run's stored logits: {error}",)
    else:
        for place, text in zip(accepted.tokenizers, tokenizers, strict=True):
            if text != splits.tokenizers[place]:
                raise RunError(
                    f"tokenizer {place} of the run is not the one that its data were made with; "
                    "run the recipe again in another --out"
                )
        inputs.append(accepted.taken(splits.train.inputs[:STORED_EXAMPLES]))
        stored = torch.from_numpy(network_logits(files)["train"][:STORED_EXAMPLES])
    outputs = tuple(network(each) for each in inputs)
    if stored is not None:
        apart = _difference(outputs[-1], stored)
        if not apart <= STORED_TOLERANCE:
            raise CheckpointError(
                f"the network gives other logits than {files.logits} holds: they differ by {apart:.2g} "
                f"of the largest, allowed is {STORED_TOLERANCE:g}; its code or a library has changed"
            )
    return _Probe(tuple(inputs), outputs, stored, notes)


def _target(target: Path, card: Export) -> Path:
    """Prepare the output folder, and return it."""
    if (target / CARD).is_file():
        before = read_json(target / CARD)
        digest = before.get("weights_digest") if isinstance(before, dict) else None
        if digest != card.weights_digest:
            raise RunError(f"{target} holds the export of another network; choose another --out")
        # It describes files that are about to be replaced.
        (target / CARD).unlink()
    return target


def _export_file(
    path: Path, kind: str, network: nn.Module, rebuilt: Callable[[Path], nn.Module], probe: _Probe
) -> ExportedFile:
    try:
        if kind == "safetensors":
            save_weights(path, network.network if isinstance(network, Normalised) else network)
            program: Program = rebuilt(path)
        elif kind == "torch":
            programs.write_torch(path, network, probe.inputs[1][:2])
            program = programs.read_torch(path)
        else:
            programs.write_onnx(path, network, probe.inputs[1][:2])
            program = programs.read_onnx(path)
        difference, stored_difference = _compare(path, program, probe)
    except (CheckpointError, ModelError):
        # A file that failed its check is deleted.
        path.unlink(missing_ok=True)
        raise
    return ExportedFile(
        format=kind,
        name=path.name,
        size=path.stat().st_size,
        digest=digest_file(path),
        difference=difference,
        stored_difference=stored_difference,
    )


def _compare(path: Path, program: Program, probe: _Probe) -> tuple[float, float | None]:
    try:
        found = [program(inputs) for inputs in probe.inputs]
    # The runtimes raise exceptions of different types.
    except Exception as error:
        text = " ".join(str(error).split())[:160]
        raise ModelError(f"{path.name} does not run, so it was deleted: {text}") from None
    difference = max(_difference(a, b) for a, b in zip(found, probe.outputs, strict=True))
    stored = None if probe.stored is None else _difference(found[-1], probe.stored)
    for apart, allowed, what in (
        (difference, TOLERANCE, "the network's"),
        (stored or 0.0, STORED_TOLERANCE, "those that the run stored"),
    ):
        if not apart <= allowed:
            raise ModelError(
                f"{path.name} gives other outputs than {what}, so it was deleted: they differ by "
                f"{apart:.2g} of the largest, allowed is {allowed:g}; leave this format out"
            )
    return difference, stored


def _difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference as a share of the largest expected value, or of 1."""
    if found.shape != expected.shape:
        return float("inf")
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1))
