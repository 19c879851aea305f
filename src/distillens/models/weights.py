"""Weights on disk: safetensors, or a torch state dict read with ``weights_only=True``."""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import struct
import sys
from collections.abc import Mapping
from pathlib import Path, PosixPath
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from distillens.errors import CheckpointError, one_line
from distillens.files.atomic import write_atomically


def state_bytes(source: nn.Module | Mapping[str, Tensor]) -> bytes:
    """Return what a weights file holds: the state dict of a model, or one given, as safetensors.

    Raises
    ------
    CheckpointError
        An entry is no tensor, or has a type that safetensors does not have.
    """
    named = source.state_dict() if isinstance(source, nn.Module) else source
    state: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, value in named.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"{name!r} of the model's state is a {type(value).__name__}; safetensors holds "
                "tensors only, so get_extra_state must return one"
            )
        tensor = value.detach().cpu()
        if tensor.layout != torch.strided:
            tensor = tensor.to_dense()
        tensor = tensor.resolve_conj().resolve_neg().contiguous()
        # Tied weights and views share memory, which the format refuses; each gets its own.
        storage = tensor.untyped_storage().data_ptr()
        if storage in storages:
            tensor = tensor.clone()
        storages.add(storage)
        state[name] = tensor
    try:
        return save(state)
    except (KeyError, ValueError, RuntimeError, SafetensorError) as error:
        kinds = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in state.values()})
        raise CheckpointError(
            f"a model with weights of the types {', '.join(kinds)} cannot be saved as "
            f"safetensors: {one_line(error)[:120]}"
        ) from None


def save_weights(path: Path, source: nn.Module | Mapping[str, Tensor]) -> str:
    """Write a state dict as safetensors, atomically; return the digest of the file.

    ``source`` is a model, or its state dict of whole tensors where the model itself is sharded.
    """
    content = state_bytes(source)
    write_atomically(path, content)
    return hashlib.sha256(content).hexdigest()


DAMAGE = (
    RuntimeError, OSError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError,
    struct.error, SafetensorError,
)  # fmt: skip
"""Exceptions from reading damaged bytes, depending on the position of the damage."""


def _plain_classes() -> list[Any]:
    """Return classes of values that are saved with weights and run no code when they are read."""
    kinds: list[Any] = [argparse.Namespace, SimpleNamespace, PosixPath, np.ndarray, np.dtype]
    kinds += {type(np.dtype(code)) for code in np.typecodes["All"] if code != "O"}
    multiarray = sys.modules[np.empty(0).__reduce__()[0].__module__]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        for name in ("scalar", "_reconstruct"):
            kinds.append((getattr(multiarray, name), f"{module}.{name}"))
    return kinds


def load_safely(path: Path) -> Any:
    """Read what ``torch.save`` wrote; nothing but tensors and plain values is unpickled.

    Plain values are numbers, strings and their collections, NumPy numbers and arrays, and the
    ``argparse.Namespace`` that many training programs save together with the weights.

    Raises
    ------
    CheckpointError
        The file is damaged, or holds other objects.
    """
    with torch.serialization.safe_globals(_plain_classes()):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            raise CheckpointError(_refusal(path)) from None
        except DAMAGE as error:
            raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> CheckpointError:
    text = " ".join(str(error).split())[:120] or "it ends too early"
    if "TorchScript" in text:
        text = "it is a TorchScript program; save torch.jit.load(path).state_dict()"
    if isinstance(error, KeyError):
        # The key that torch's reader lacked does not help the user.
        text = "it is neither safetensors nor a file of torch.save"
    return CheckpointError(f"{path} is no readable checkpoint: {text}")


OTHER_FILES = {
    b"version https://git-lfs": "a pointer of Git LFS; fetch the file with `git lfs pull`",
    b"<!doctype html": "a web page; download the file itself",
    b"<html": "a web page; download the file itself",
    b"\x1f\x8b": "compressed by gzip; decompress it first",
}
"""Contents that failed downloads leave in checkpoint files, by their first bytes."""


def _refusal(path: Path) -> str:
    """Return why a pickle is not read, with the classes that it names where they can be listed."""
    with path.open("rb") as file:
        start = file.read(64).lstrip().lower()
    for begins, what in OTHER_FILES.items():
        if start.startswith(begins):
            return f"{path} is no checkpoint: it is {what}"
    try:
        names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except (pickle.UnpicklingError, *DAMAGE):
        names = []
    shown = f" ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})" if names else ""
    whole = any(name.startswith("torch.nn.modules.") for name in names)
    advice = (
        "a whole module was saved: load it with the code that made it, then save model.state_dict()"
        if whole
        else "save model.state_dict() or safetensors"
    )
    return (
        f"{path} is damaged or holds objects other than tensors{shown}, which are never unpickled; "
        f"{advice}"
    )


def read_checkpoint(path: Path) -> Any:
    """Read a checkpoint as it is: safetensors, the index of its shards, or a file of ``torch.save``.

    Raises
    ------
    CheckpointError
        The file or a shard is missing or damaged, or holds objects that are never unpickled.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint {path}")
    if path.name.endswith(".index.json"):
        return {name: t for each in shards(path) for name, t in read_checkpoint(each).items()}
    with path.open("rb") as file:
        start = file.read(9)
    # A header of JSON behind its length; files of torch.save begin otherwise.
    if path.suffix == ".safetensors" or start[8:] == b"{":
        try:
            return load_file(path)
        except DAMAGE as error:
            raise _damaged(path, error) from None
    return load_safely(path)


def shards(index: Path) -> list[Path]:
    """Return the files in the same folder that the index of a sharded checkpoint names."""
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return [index.parent / Path(name).name for name in sorted(names)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{index} is no index of a checkpoint's shards") from None


def load_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict that stands alone, or under ``state_dict``.

    Raises
    ------
    CheckpointError
        The file is missing, damaged, or holds anything but named tensors.
    """
    state = read_checkpoint(path)
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if state == {}:
        raise CheckpointError(f"{path} is an empty state dict")
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} is no state dict: it holds a {type(state).__name__}")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path} is no state dict: entry {name!r} is a {type(value).__name__}, not a "
                "tensor; save model.state_dict()"
            )
    return state


def checkpoint_digest(path: Path) -> str:
    """Return the SHA-256 of a checkpoint; of the index of shards, that of the shards too."""
    if not path.name.endswith(".index.json"):
        return digest_file(path)
    digests = [digest_file(each) for each in (path, *shards(path))]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def digest_file(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
