"""A cache of teacher logits on every augmented example of an epoch.

A block holds the logits of one checkpoint on one epoch of one data set. It is computed as a whole, in
the order of the examples and always in chunks of the same size, so its bits depend neither on the
first reader nor on interruptions of a run. Where training data are held on an accelerator, blocks are
kept there in memory; otherwise, or on request, they are files.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distillens.data.batches import Batch, Batches, Rows
from distillens.data.examples import Examples
from distillens.errors import SupervisionError
from distillens.files.atomic import write_atomically
from distillens.forward.device_errors import device_errors
from distillens.forward.evaluation import bring, evaluate, evaluation_mode
from distillens.supervision import protocol
from distillens.supervision.block_memory import BLOCKS
from distillens.supervision.compressed import compress, expand
from distillens.supervision.protocol import Composite, NotCapturable, Teacher
from distillens.supervision.teachers.followed import RecordedTeacher, check_finite

CHUNK = 128
"""Batch size of the teacher; it influences the bits of a block, so it is constant."""

LARGE_CHUNK_BYTES = 2**25
"""Bytes of float32 inputs in a teacher's batch on an accelerator, if this is more examples."""


@dataclass(eq=False, repr=False)
class LogitCache:
    """Blocks of teacher logits in a folder, bound to data, augmentation and precision.

    Parameters
    ----------
    folder
        Folder of the blocks; may be shared by runs.
    batches
        The training batches, which know examples, augmentation and normalisation.
    precision
        "float32" or "bfloat16": data type of the teacher's computations. Logits are stored in float32.
    max_bytes
        Disk space for all blocks of the folder; the least recently used are deleted for a new one.
    top_k
        Number of logits kept per example (see `distillens.supervision.compressed`); the share
        of mass left out is in the JSON file of each block. None, or C and more, keeps all.
    on_disk
        Write every block to the folder, also where it could be kept in the memory of an accelerator.
    """

    folder: Path
    batches: Batches
    precision: str
    _: KW_ONLY
    max_bytes: int = 20 * 10**9
    top_k: int | None = None
    on_disk: bool = False

    def __post_init__(self) -> None:
        if not self.top_k or self.top_k >= len(self.batches.examples.classes):
            self.top_k = None

    def key(self, digest: str, epoch: int) -> dict[str, Any]:
        """Return the description of all that the logits of a checkpoint in an epoch depend on."""
        how = self.batches.augmentation
        changes = how is not None and how.changes
        normalisation = self.batches.normalisation
        scale = [] if normalisation is None else [normalisation.mean, normalisation.deviation]
        return {
            "checkpoint": digest,
            "data": self.batches.examples.fingerprint,
            "normalisation": [round(float(x), 9) for t in scale for x in t.flatten()],
            "augmentation": how.model_dump() if how is not None and changes else None,
            # Without augmentation one block serves every epoch.
            "epoch": epoch if changes else None,
            "precision": self.precision,
            "top_k": self.top_k,
        }

    def teacher(self, digest: str, module: Callable[[], nn.Module]) -> Teacher:
        """Return a checkpoint as a teacher whose logits come from this cache; see `CachedTeacher`."""
        return CachedTeacher(self, digest, module)

    def held(self, digest: str, epoch: int, module: Callable[[], nn.Module]) -> Tensor | None:
        """Return the (N, C) logits of `block` in the memory of the device that holds the examples.

        All caches of this process share them. A block that is in the folder is read from there; one
        that is not is computed and not written. None where blocks are compressed, are to be on disk,
        are shared by several processes or do not fit.
        """
        batches = self.batches
        together = torch.distributed.is_initialized()
        if batches.held is None or self.on_disk or self.top_k is not None or together:
            return None
        path, device = self._path(self.key(digest, epoch)), batches.held.labels.device
        classes = len(batches.examples.classes)
        outputs = 1 if classes == 2 else classes

        def make() -> Tensor:
            if _is_stored(path):
                found = torch.from_numpy(np.array(self.block(digest, epoch, module)))
            else:
                found = self._compute(module(), epoch)
            check_finite(found)
            return found.to(device)

        return BLOCKS.fetch(path.stem, device, 4 * len(batches.examples) * outputs, make)

    def block(self, digest: str, epoch: int, module: Callable[[], nn.Module]) -> np.ndarray:
        """Return (N, C) logits in the order of the examples, computing them at most once.

        With ``top_k`` rows are compressed.

        Raises
        ------
        SupervisionError
            A stored block is damaged, or its name does not match its content.
        """
        key = self.key(digest, epoch)
        path = self._path(key)
        # Before the barrier, so that no process sees what another one has computed behind it.
        stored = _is_stored(path)
        together = torch.distributed.is_initialized()
        if together:
            # All processes reach this point at the same step: one computes, the others wait for it.
            torch.distributed.barrier()
        if not stored and (not together or torch.distributed.get_rank() == 0):
            with _alone(path):
                # Another process may have computed it while this one waited.
                if not _is_stored(path):
                    self._store(path, key, self._compute(module(), epoch).cpu())
        if together:
            torch.distributed.barrier()
        # The time of the last use decides which block is deleted first.
        with suppress(FileNotFoundError):
            os.utime(path)
        _check(path.with_suffix(".json"), key)
        try:
            block = np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            if together:
                raise SupervisionError(
                    f"{path} was deleted for another run's logits before it was read; "
                    "give the cache more room (cache_gigabytes)"
                ) from None
            # Another process has just deleted it to make room for a block.
            return self.block(digest, epoch, module)
        # NumPy takes a damaged header for other formats, whose readers raise other exceptions.
        except Exception:
            block = None
        rows = len(self.batches.examples)
        if not isinstance(block, np.ndarray) or block.ndim != 2 or len(block) != rows:
            raise SupervisionError(
                f"{path} is damaged: it does not hold the logits of {rows} examples; delete it to have "
                "it computed again"
            )
        return block

    def left_out(self) -> tuple[float, float] | None:
        """Return the mean and the largest share of mass left out of the folder's compressed blocks."""
        found = [_read(path) for path in self.folder.glob("*.json")]
        shares = [
            block["left_out"]
            for block in found
            if block.get("left_out") and block.get("top_k") == self.top_k
        ]
        if not shares:
            return None
        return float(np.mean([mean for mean, _ in shares])), max(most for _, most in shares)

    def _path(self, key: dict[str, Any]) -> Path:
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return self.folder / f"{digest[:32]}.npy"

    def _store(self, path: Path, key: dict[str, Any], logits_NC: Tensor) -> None:
        if self.top_k is not None:
            logits_NC, mean, most = compress(logits_NC, self.top_k)
            key = {**key, "left_out": [mean, most]}
        stored = io.BytesIO()
        np.save(stored, logits_NC.numpy())
        self._make_room(stored.getbuffer().nbytes)
        write_atomically(path.with_suffix(".json"), json.dumps(key, indent=1) + "\n")
        write_atomically(path, stored.getvalue())

    def _make_room(self, wanted: int) -> None:
        if wanted > self.max_bytes:
            raise SupervisionError(
                f"one epoch's teacher logits take {wanted} bytes, the cache may hold "
                f"{self.max_bytes}; give it more room (cache_gigabytes)"
            )
        found = []
        for path in self.folder.glob("*.npy"):
            # Another run that shares the folder may make room at the same time.
            with suppress(FileNotFoundError):
                status = path.stat()
                found.append((status.st_mtime_ns, status.st_size, path))
        used = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if used + wanted <= self.max_bytes:
                return
            used -= size
            path.unlink(missing_ok=True)

    @device_errors(
        "the logits of a teacher on the training examples",
        "compute them on a device with more memory and give them as teacher.logits, or use a smaller "
        "teacher",
    )
    @torch.no_grad()
    def _compute(self, module: nn.Module, epoch: int) -> Tensor:
        """Return (N, C) float32 logits on the device, which the host does not wait for."""
        count, chunk = len(self.batches.examples), self._chunk()
        device = self.batches.device.type
        bring(module, self.batches.device)
        rows: list[Tensor] = []
        precision = torch.autocast(device, torch.bfloat16, enabled=self.precision == "bfloat16")
        with precision, evaluation_mode(module):
            for start in range(0, count, chunk):
                batch = self.batches.take(np.arange(start, min(start + chunk, count)), epoch)
                output = evaluate(module, batch.inputs)
                rows.append(protocol.teacher_logits(output, batch).float())
        return torch.cat(rows)

    def _chunk(self) -> int:
        """Return how many examples the teacher sees at once, by their shape and the device."""
        if self.batches.device.type == "cpu":
            return CHUNK
        return max(CHUNK, LARGE_CHUNK_BYTES // (4 * self.batches.examples.inputs[0].numel()))


def _is_stored(path: Path) -> bool:
    return path.is_file() and path.with_suffix(".json").is_file()


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a block's lock, so that of several processes that lack it one computes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (path.parent / ".lock").open("a") as lock:
        # One byte of a lock file per block; the lock is released when the process ends.
        fcntl.lockf(lock, fcntl.LOCK_EX, 1, int(path.stem[:15], 16))
        yield


def _read(described: Path) -> dict[str, Any]:
    try:
        found = json.loads(described.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise SupervisionError(f"{described} is damaged; delete it to have its logits made again")
    return found


def _check(described: Path, key: dict[str, Any]) -> None:
    found = _read(described)
    for name, value in key.items():
        if found.get(name) != value:
            raise SupervisionError(
                f"the teacher logits of {described} were made with {name} "
                f"{found.get(name)!r}, not {value!r}; delete them to have them computed again"
            )


class CachedTeacher(Composite):
    """A checkpoint whose logits come from a cache.

    Parameters
    ----------
    cache
        The cache of the blocks.
    digest
        Digest of the checkpoint's weights.
    module
        Loads the checkpoint; called only where a block is missing.
    """

    def __init__(self, cache: LogitCache, digest: str, module: Callable[[], nn.Module]) -> None:
        self._cache = cache
        self._digest = digest
        self._module = module
        self._loaded: nn.Module | None = None
        self._opened: tuple[int, Examples | None] | None = None
        self._held: Tensor | None = None
        self._block: RecordedTeacher | None = None

    def advance(self, batch: Batch, step: int) -> None:
        """Open the block of the batch's epoch."""
        wanted = (batch.epoch, None if batch.rows is None else batch.rows.examples)
        opened = self._opened
        if opened is not None and opened[0] == wanted[0] and opened[1] is wanted[1]:
            return
        cache, arguments = self._cache, (self._digest, batch.epoch, self._network)
        held = None if batch.rows is None else cache.held(*arguments)
        if held is not None and wanted[1] is cache.batches.held:
            # Its rows are in the order of the examples, so no lookup is needed.
            self._held, self._block = held, None
        else:
            self._held = None
            block = cache.block(*arguments) if held is None else held
            self._block = RecordedTeacher(block, cache.batches.examples.indices)
        self._opened = wanted

    def _network(self) -> nn.Module:
        if self._cache.batches.held is None:
            return self._module()
        # Kept: reading it for every epoch would take longer than running it on an accelerator.
        if self._loaded is None:
            self._loaded = self._module()
        return self._loaded

    def table(self, rows: Rows) -> Tensor | None:
        """Return the logits of all examples; None where they are compressed or do not fit."""
        if self._held is not None:
            return self._held
        compressed = self._cache.top_k is not None
        return None if compressed or self._block is None else self._block.table(rows)

    def phase(self, step: int) -> Hashable:
        """Return the same for all steps.

        Raises
        ------
        NotCapturable
            The logits are compressed or do not fit on the device.
        """
        if self._cache.top_k is not None:
            raise NotCapturable("the teacher's logits are compressed (cache_top_k)")
        return "cached" if self._block is None else protocol.phase_of(self._block, step)

    def notes(self) -> tuple[str, ...]:
        """Return why the logits are not held on the device, if they are not."""
        return () if self._block is None else self._block.notes()

    def logits(self, batch: Batch) -> Tensor:
        """Return the batch's rows."""
        self.advance(batch, 0)
        if self._held is not None:
            assert batch.rows is not None
            return self._held.index_select(0, batch.rows.positions)
        assert self._block is not None
        rows = self._block.logits(batch)
        if self._cache.top_k is None:
            return rows
        return expand(rows, len(self._cache.batches.examples.classes))
