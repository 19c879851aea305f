"""The script for one GPU runs from end to end on a CPU, and writes each result as soon as it exists."""

from __future__ import annotations

import json
from pathlib import Path

import device
import numpy as np
import packed_images
import pytest
import torch
from device import SUPERVISIONS
from PIL import Image
from plain_step import bound_milliseconds
from torch import nn


def test_device_script_runs_all_parts_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[list[str]] = []
    put = device.Record.put

    def recorded(self: device.Record, part: str, name: str, value: object) -> None:
        put(self, part, name, value)
        written.append(list(json.loads(self.path.read_text())))

    monkeypatch.setattr(device.Record, "put", recorded)
    device.main(["--toy", "--device", "cpu", "--minutes", "5", "--out", str(tmp_path)])
    # After its first result a part is in the file, and later parts are not.
    seen = [parts[-1] for parts in written]
    assert list(dict.fromkeys(seen)) == ["machine", "tests", "steps", "kernel", "row"]
    found = json.loads((tmp_path / "device.json").read_text())
    assert found["tests"]["result"]["status"] == 0
    assert "skipped" in found["tests"]["result"]["last line"]
    steps = found["steps"]
    for name in ("teacher", "five students"):
        assert steps[f"plain loop, {name}, ms"] > 0
        assert steps[f"distillens, {name}, ms"] > 0
    assert all(
        line["status"] == "ok" for name, line in found["kernel"].items() if name != "seconds"
    )
    row = found["row"]
    assert row["epochs"] == 2
    assert {"teacher", *SUPERVISIONS} <= set(row)
    low, high = row["teacher"]["interval"]
    assert low < row["teacher"]["test accuracy"] < high
    assert {len(lines) for lines in row["training"].values()} == {1}
    assert len(row["training"]) == 1 + len(SUPERVISIONS)


def test_device_script_stops_where_a_part_does_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="the row needs the step times"):
        device.main(["--toy", "--device", "cpu", "--parts", "row", "--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        device.main(["--parts", "steps,nothing"])
    assert "no part 'nothing'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        device.main(["--device", "cpu"])
    assert "--data is needed" in capsys.readouterr().err
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit, match="sees no CUDA device"):
            device.main(["--toy"])


def test_packed_images_are_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_images, "ROWS", 2)
    monkeypatch.setattr(packed_images, "PER_FILE", 4)
    monkeypatch.setattr(packed_images, "TRAIN", 8)
    noise = np.random.default_rng(0)
    arrays = {
        f"{letter}_{split}": values
        for split, count in (("train", 8), ("test", 4))
        for letter, values in (
            ("x", noise.integers(0, 256, (count, 32, 32, 3)).astype(np.uint8)),
            ("y", noise.integers(0, 100, count).astype(np.uint8)),
        )
    }
    read = packed_images.read_images
    monkeypatch.setattr(packed_images, "read_images", lambda folder: arrays)
    packed_images.pack(tmp_path, tmp_path / "packed")
    found = read(tmp_path / "packed")
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[name], arrays[name]) for name in arrays)
    # The first mosaic holds the first images, row by row.
    with Image.open(tmp_path / "packed" / "m00.webp") as opened:
        mosaic = np.array(opened)
    assert np.array_equal(mosaic[:32, 32:], arrays["x_train"][1])
    (tmp_path / "packed" / "m01.webp").unlink()
    with pytest.raises(SystemExit, match="holds 2 mosaics for 12 labels"):
        read(tmp_path / "packed")


def test_the_bound_of_a_linear_step_is_its_arithmetic_and_traffic() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    found = bound_milliseconds(model, 8, (3, 2, 2), 60, (1e3, 1e3))
    assert found["arithmetic_ms"] == pytest.approx(3 * 2 * 60 * 8)
    weights, outputs = 12 * 5 + 5, 8 * (12 + 5)
    assert found["traffic_ms"] == pytest.approx(24 * weights + 8 * outputs)
