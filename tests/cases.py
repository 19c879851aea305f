"""Cases that several tests share."""

from __future__ import annotations

import gzip
import json
import struct
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from distillens.data import SOURCES
from distillens.models import MODELS
from distillens.registry import load_plugins
from distillens.supervision import SUPERVISIONS


@contextmanager
def installed(folder: Path, files: Mapping[str, str], plugin: str) -> Iterator[None]:
    """Install a distribution for as long as the context is open.

    Parameters
    ----------
    folder
        Where to write it.
    files
        The text of its modules by their path.
    plugin
        The module that its entry point of the group ``distillens.plugins`` names.
    """
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    info = folder / f"{plugin}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {plugin}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[distillens.plugins]\nmine = {plugin}\n")
    registered = [(registry, registry.names()) for registry in (SUPERVISIONS, SOURCES, MODELS)]
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    load_plugins.cache_clear()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for module in set(sys.modules) - before:
            if module.partition(".")[0] == plugin:
                del sys.modules[module]
        for registry, names in registered:
            for name in set(registry._items).difference(names):
                del registry._items[name]
        load_plugins.cache_clear()


def pictures(count: int = 20, side: int = 6, channels: int = 1) -> np.ndarray:
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (count, channels, side, side), dtype=np.uint8)


def write_idx(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    for prefix in ("train", "t10k"):
        header = struct.pack(">4B3I", 0, 0, 8, 3, *images.shape)
        with gzip.open(folder / f"{prefix}-images-idx3-ubyte.gz", "wb") as file:
            file.write(header + images.tobytes())
        labelled = struct.pack(">4B1I", 0, 0, 8, 1, len(labels)) + labels.tobytes()
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(labelled)


CLASSES = ("cat", "dog", "emu")


def picture(seed: int, side: int = 8, channels: int = 3) -> np.ndarray:
    shape = (side, side, channels) if channels > 1 else (side, side)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_picture(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def class_folders(folder: Path, test: str = "test", channels: int = 3) -> dict[str, np.ndarray]:
    """Write two training pictures and a test picture a class; return them by relative path."""
    written = {}
    for label, name in enumerate(CLASSES):
        for split, count in (("train", 2), (test, 1)):
            for place in range(count):
                key = f"{split}/{name}/{place}.png"
                written[key] = picture(100 * label + 10 * place + len(split), channels=channels)
                write_picture(folder / key, written[key])
    return written


GOOD, BAD = ("warm", "witty", "lovely", "fresh"), ("dull", "stale", "clumsy", "loud")
FILM = ("film", "plot", "cast", "score", "ending")


def sentences(count: int, seed: int = 0) -> list[tuple[str, int]]:
    """Judgements of films, of which one word tells the label."""
    draw = np.random.default_rng(seed)
    found = []
    for place in range(count):
        label = place % 2
        word = str(draw.choice(GOOD if label else BAD))
        rest = [str(each) for each in draw.choice(FILM, draw.integers(1, 4))]
        found.append((f"a {word} film with a {' and a '.join(rest)}", label))
    return found


def write_tsv(folder: Path, train: int = 60, test: int = 20) -> Path:
    folder.mkdir(exist_ok=True)
    for name, count in (("train", train), ("validation", test)):
        lines = ["sentence\tlabel", *(f"{s}\t{y}" for s, y in sentences(count, len(name)))]
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    return folder


def digests(folder: Path) -> dict[str, str]:
    cells = sorted(folder.rglob("cell.json"))
    return {
        str(cell.parent.relative_to(folder)): json.loads(cell.read_text())["weights_digest"]
        for cell in cells
    }
