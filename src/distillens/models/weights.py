"""Weights on disk: safetensors, or a torch state dict read with ``weights_only=True``."""

from __future__ import annotations

import hashlib
import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from distillens.atomic import write_atomically
from distillens.errors import CheckpointError, nearest


def state_bytes(source: nn.Module | Mapping[str, Tensor]) -> bytes:
    """Return what a weights file holds: the state dict of a model, or one given, as safetensors."""
    named = source.state_dict() if isinstance(source, nn.Module) else source
    state = {name: t.detach().cpu().contiguous() for name, t in named.items()}
    # Tied weights and views of one tensor share memory, which the format refuses; each name gets a
    # copy of its own.
    seen: set[int] = set()
    for name, tensor in state.items():
        memory = tensor.untyped_storage().data_ptr()
        if memory in seen:
            state[name] = tensor.clone()
        seen.add(memory)
    return save(state)


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
"""What reading damaged bytes raises, depending on where the damage is."""


def load_safely(path: Path) -> Any:
    """Read what ``torch.save`` wrote; nothing but tensors and plain values is unpickled.

    Raises
    ------
    CheckpointError
        The file is damaged, or holds other objects.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path} is damaged or holds objects other than tensors, which are never unpickled; "
            "save model.state_dict() or safetensors"
        ) from None
    except DAMAGE as error:
        text = " ".join(str(error).split())[:120] or "it ends too early"
        if isinstance(error, KeyError):
            # Which key torch's reader lacked says nothing to the file's owner.
            text = "it is neither safetensors nor a file of torch.save"
        raise CheckpointError(f"{path} is no readable checkpoint: {text}") from None


def load_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict.

    Raises
    ------
    CheckpointError
        The file is missing, damaged, or holds anything but named tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint {path}")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except DAMAGE as error:
            text = " ".join(str(error).split())[:120] or "it ends too early"
            raise CheckpointError(f"{path} is no readable checkpoint: {text}") from None
    state = load_safely(path)
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


def load_weights(path: Path, model: nn.Module) -> None:
    """Load a checkpoint into a model.

    Raises
    ------
    CheckpointError
        As :func:`load_state`, or names or shapes differ from the model's, or a weight is not finite.
    """
    state, wanted = load_state(path), model.state_dict()
    for name, tensor in wanted.items():
        if name not in state:
            raise CheckpointError(
                f"{path} has no weight {name!r}{nearest(name, state)}; is it another architecture?"
            )
        if state[name].shape != tensor.shape:
            raise CheckpointError(
                f"{path}: {name!r} has shape {tuple(state[name].shape)}, "
                f"the model needs {tuple(tensor.shape)}; another class count or architecture?"
            )
        # Masks of -inf are buffers by design: such a model holds them before it is loaded.
        if not bool(torch.isfinite(state[name]).all()) and bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{path}: {name!r} holds a NaN or an infinity")
    if extra := sorted(set(state) - set(wanted)):
        raise CheckpointError(
            f"{path} has {len(extra)} weights that the model lacks, first {extra[0]!r}; "
            "another architecture?"
        )
    model.load_state_dict(state)


def digest_file(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
