"""A Gram in a folder: values that are larger than memory, and a computation that can be resumed.

``gram.npy`` holds the values, ``gram.json`` describes what they are and how they are computed, and
``done-R.json`` lists for process R which tiles are done. The plan of the first start is kept, so that a
computation that is killed and resumed gives the same bits as one that was not.
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
from distillens.kernel.assembly.ranks import Ranks
from distillens.kernel.tracing.directions import Outputs
from distillens.kernel.tracing.network import Prepared

_SCHEMA = 2
_PIECE = 2**22
"""Numbers that are hashed at a time."""


def made_of(
    prepared: Prepared, outputs: Outputs, rows: Tensor, columns: Tensor | None
) -> dict[str, Any]:
    """Return the identity of a computation, by names that a message can use."""
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
        The identity of the Gram, by names that a message can use.
    shape, dtype
        Shape and type of the values.
    ranks
        The processes that fill it; all have access to the folder.
    seconds
        Time between two records of what is done. Later work is repeated after a kill.

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
        seconds: float,
    ) -> None:
        self._seconds = seconds
        self._folder, self._ranks = folder, ranks
        # As the file stores it: a tuple becomes a list.
        self._made_of: dict[str, Any] = json.loads(json.dumps(made_of))
        self._shape = shape
        self._type = np.dtype(str(dtype).removeprefix("torch."))
        self._values: np.memmap[Any, Any] | None = None
        self._marked = time.monotonic()
        with ranks.together():
            self.kept: dict[str, Any] | None = self._read()
            self.done: dict[int, int] = self._read_done() if self.kept else {}
        """How many tiles of each panel are done."""

    def begin(self, kept: dict[str, Any]) -> Tensor:
        """Open the values for writing; ``kept`` is returned when the computation is resumed.

        Raises
        ------
        KernelError
            The disk is full.
        """
        with self._ranks.together():
            if self._ranks.rank == 0:
                self._prepare(kept)
        with self._ranks.together():
            # From now on this file includes what other processes did in an earlier start.
            self._write_done()
            self._values = self._open("r+")
        return torch.from_numpy(self._values)

    def mark(self, panel: int, tiles: int, now: bool = False) -> None:
        """Record how many tiles of a panel are done, every few seconds or now."""
        self.done[panel] = tiles
        if not now and time.monotonic() - self._marked < self._seconds:
            return
        assert self._values is not None
        # The values must be on the disk before the record is.
        self._values.flush()
        self._write_done()
        self._marked = time.monotonic()

    def finished(self) -> Tensor:
        """Return the values; writing to them does not change the file."""
        self._values = None
        return torch.from_numpy(self._open("c"))

    def _read(self) -> dict[str, Any] | None:
        about = self._folder / "gram.json"
        if self._folder.exists() and not self._folder.is_dir():
            raise KernelError(f"{self._folder} is a file; give a folder for the Gram")
        if not about.exists():
            if (self._folder / "gram.npy").exists():
                raise KernelError(
                    f"{self._folder} holds a gram.npy but no gram.json that describes it; "
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
            raise _damaged(f"cannot read {path}: {error}") from None
        if not isinstance(found, dict):
            raise _damaged(f"{path} is damaged")
        return found

    def _prepare(self, kept: dict[str, Any]) -> None:
        values = self._folder / "gram.npy"
        if self.kept is None:
            content = {"schema": _SCHEMA, "made_of": self._made_of, "kept": kept}
            write_atomically(self._folder / "gram.json", json.dumps(content, indent=1))
        if values.exists():
            return
        if self.done:
            raise _damaged(f"{values} is missing although tiles of it were done")
        part = values.with_suffix(".part")
        size = int(np.prod(self._shape)) * self._type.itemsize
        try:
            offset = np.lib.format.open_memmap(part, "w+", self._type, self._shape).offset
            # A sparse file for which the disk has no room would kill the process later.
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
            raise _damaged(f"cannot open {path}: {error}") from None
        if (found.shape, found.dtype) != (self._shape, self._type):
            raise _damaged(f"{path} holds {found.shape} of {found.dtype}, which was not written")
        return found

    def _write_done(self) -> None:
        content = json.dumps({str(panel): tiles for panel, tiles in sorted(self.done.items())})
        write_atomically(self._folder / f"done-{self._ranks.rank}.json", content)


def _damaged(line: str) -> KernelError:
    return KernelError(f"{line}; delete the folder to compute the Gram anew")


def digest_of(tensors: dict[str, Tensor]) -> str:
    """Return a digest of the names, types, shapes and bytes of tensors."""
    found = hashlib.sha256()
    for name, tensor in tensors.items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        for part in tensor.detach().reshape(-1).split(_PIECE):
            found.update(part.cpu().numpy().view(np.uint8).data)
    return found.hexdigest()


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
