"""A Gram in a folder: values that are larger than memory, and a computation that can go on.

``gram.npy`` holds the values, ``gram.json`` what they are of and how they are computed, and a
``done-R.json`` for each process which tiles are there. The plan of the first start stays, so that
a computation that was killed and goes on gives the same bits as one that was not.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distillens.errors import KernelError
from distillens.files.atomic import write_atomically
from distillens.kernel.directions import Outputs
from distillens.kernel.network import Prepared
from distillens.kernel.ranks import Ranks

_SCHEMA = 1
_PIECE = 2**22
"""Numbers that are digested at a time."""
_SECONDS = 5.0
"""Between two marks; what was done since the last is done again after a kill."""


def made_of(
    prepared: Prepared, outputs: Outputs, rows: Tensor, columns: Tensor | None
) -> dict[str, Any]:
    """Return what a computation is of, by names that a message can use."""
    network = prepared.network
    tensors = dict([*network.named_parameters(), *network.named_buffers()])
    return {
        "model": type(network.model).__qualname__,
        "outputs": outputs,
        "dtype": str(prepared.dtype),
        "parameters": list(prepared.parameters),
        "inputs' shape": tuple(rows.shape),
        "other inputs' shape": None if columns is None else tuple(columns.shape),
        "weights": digest_of(tensors),
        "inputs": digest_of({"": rows}),
        "other inputs": None if columns is None else digest_of({"": columns}),
    }


class GramStore:
    """A folder with a Gram that is computed or being computed.

    Parameters
    ----------
    folder
        New, empty, or of the same Gram.
    made_of
        What the Gram is of, by names that a message can use.
    shape, dtype
        Of the values.
    ranks
        The processes that fill it; they all see the folder.

    Raises
    ------
    KernelError
        The folder holds another Gram or a damaged one, or the disk is full.
    """

    def __init__(
        self,
        folder: Path,
        made_of: dict[str, Any],
        shape: tuple[int, ...],
        dtype: torch.dtype,
        ranks: Ranks,
    ) -> None:
        self._folder, self._ranks = folder, ranks
        # As it comes back from the file, where a tuple is a list.
        self._made_of: dict[str, Any] = json.loads(json.dumps(made_of))
        self._shape = shape
        self._type = np.dtype(str(dtype).removeprefix("torch."))
        self._values: np.memmap[Any, Any] | None = None
        self._marked = time.monotonic()
        with ranks.together():
            self.kept: dict[str, Any] | None = self._read()
            self.done: dict[int, int] = self._read_done() if self.kept else {}
        """How many tiles of each panel are there."""

    def begin(self, kept: dict[str, Any]) -> Tensor:
        """Open the values for writing; ``kept`` is what a later start needs to know.

        Raises
        ------
        KernelError
            The disk is full.
        """
        with self._ranks.together():
            if self._ranks.rank == 0:
                self._prepare(kept)
        with self._ranks.together():
            # Other processes' marks of an earlier start are in this one's file from here on.
            self._write_done()
            self._values = self._open("r+")
        return torch.from_numpy(self._values)

    def mark(self, panel: int, tiles: int, now: bool = False) -> None:
        """Note how many tiles of a panel are there, every few seconds or at once."""
        self.done[panel] = tiles
        if not now and time.monotonic() - self._marked < _SECONDS:
            return
        assert self._values is not None
        # The values must be on the disk before a file says so.
        self._values.flush()
        self._write_done()
        self._marked = time.monotonic()

    def finished(self) -> Tensor:
        """Return the values; writing to them changes memory, not the file."""
        self._values = None
        return torch.from_numpy(self._open("c"))

    def _read(self) -> dict[str, Any] | None:
        about, values = self._folder / "gram.json", self._folder / "gram.npy"
        if self._folder.exists() and not self._folder.is_dir():
            raise KernelError(f"{self._folder} is a file; give a folder for the Gram")
        if not about.exists():
            if values.exists():
                raise KernelError(
                    f"{self._folder} holds a gram.npy but no gram.json that says what it is; "
                    "give an empty folder"
                )
            return None
        found = self._json(about)
        if found.get("schema") != _SCHEMA:
            raise KernelError(
                f"{about} has schema {found.get('schema')!r}, known is {_SCHEMA}; give an empty "
                "folder"
            )
        for name, value in self._made_of.items():
            kept = found["made_of"].get(name)
            if kept != value:
                raise KernelError(
                    f"{self._folder} holds a Gram of other {name}: there {_short(kept)}, here "
                    f"{_short(value)}; give another folder"
                )
        return found["kept"]

    def _read_done(self) -> dict[int, int]:
        done: dict[int, int] = {}
        for path in sorted(self._folder.glob("done-*.json")):
            for panel, tiles in self._json(path).items():
                done[int(panel)] = max(tiles, done.get(int(panel), 0))
        return done

    def _json(self, path: Path) -> dict[str, Any]:
        try:
            found = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise KernelError(
                f"cannot read {path}: {error}; delete the folder to compute the Gram anew"
            ) from None
        if not isinstance(found, dict):
            raise KernelError(f"{path} is damaged; delete the folder to compute the Gram anew")
        return found

    def _prepare(self, kept: dict[str, Any]) -> None:
        values = self._folder / "gram.npy"
        if self.kept is None:
            content = {"schema": _SCHEMA, "made_of": self._made_of, "kept": kept}
            write_atomically(self._folder / "gram.json", json.dumps(content, indent=1))
        if not values.exists():
            if self.done:
                raise KernelError(
                    f"{values} is missing although tiles of it were done; delete the folder to "
                    "compute the Gram anew"
                )
            self._create(values)

    def _create(self, values: Path) -> None:
        part = values.with_suffix(".part")
        size = int(np.prod(self._shape)) * self._type.itemsize
        try:
            made = np.lib.format.open_memmap(part, "w+", self._type, self._shape)
            offset = made.offset
            del made
            # A hole in the file that the disk has no room for would end the process later.
            with part.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, offset + size)
            part.replace(values)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise KernelError(
                f"no room for a Gram of {size / 2**20:.4g} MiB in {self._folder}: "
                f"{error.strerror}; give a folder on a larger disk"
            ) from None

    def _open(self, mode: Any) -> np.memmap[Any, Any]:
        path = self._folder / "gram.npy"
        try:
            found = np.lib.format.open_memmap(path, mode)
        except (OSError, ValueError) as error:
            raise KernelError(
                f"cannot open {path}: {error}; delete the folder to compute the Gram anew"
            ) from None
        if found.shape != self._shape or found.dtype != self._type:
            raise KernelError(
                f"{path} holds {found.shape} of {found.dtype} where {self._shape} of {self._type} "
                "was written; delete the folder to compute the Gram anew"
            )
        return found

    def _write_done(self) -> None:
        content = json.dumps({str(panel): tiles for panel, tiles in sorted(self.done.items())})
        write_atomically(self._folder / f"done-{self._ranks.rank}.json", content)


def digest_of(tensors: dict[str, Tensor]) -> str:
    """Return a digest of tensors: their names, types, shapes and bytes."""
    found = hashlib.sha256()
    for name, tensor in tensors.items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        for part in tensor.detach().reshape(-1).split(_PIECE):
            found.update(part.cpu().numpy().view(np.uint8).data)
    return found.hexdigest()


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
