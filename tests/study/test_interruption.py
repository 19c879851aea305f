"""Kills and full disks: nothing that was finished is lost, and the end is the same."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import distillens
from distillens.errors import RunError


def digests(folder: Path) -> dict[str, str]:
    return {
        str(cell.parent.relative_to(folder)): json.loads(cell.read_text())["weights_digest"]
        for cell in sorted(folder.rglob("cell.json"))
    }


def start(recipe: Path, out: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "distillens", "run", str(recipe), "--out", str(out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_a_run_killed_fifty_times_ends_with_the_digests_of_one_that_was_not(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    tiny["seeds"] = [0, 1]
    tiny["data"]["augmentation"] = {"crop": 1}
    for part in ("teacher", "student"):
        tiny[part]["training"]["epochs"] = 12
    tiny["complexity"]["epochs"] = [0, 12]
    tiny["supervisions"].append({"kind": "co-trained", "temperature": 2})
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tiny))
    began = time.monotonic()
    assert start(recipe, tmp_path / "whole").wait() == 0
    length = time.monotonic() - began
    chance = random.Random(0)
    kills = finished = 0
    while kills < 50:
        # Seldom at all: most attempts are to end with a kill, on a machine of whatever speed.
        assert finished < 100
        began = time.monotonic()
        process = start(recipe, tmp_path / f"killed-{finished}")
        try:
            process.wait(timeout=chance.uniform(0.3, 1.0) * length)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            continue
        # One that ended before its kill is compared, tells how long a run takes now, and another
        # is begun.
        assert process.returncode == 0
        assert digests(tmp_path / f"killed-{finished}") == digests(tmp_path / "whole")
        length = min(length, time.monotonic() - began)
        shutil.rmtree(tmp_path / f"killed-{finished}")
        finished += 1
    assert start(recipe, tmp_path / f"killed-{finished}").wait() == 0
    assert digests(tmp_path / f"killed-{finished}") == digests(tmp_path / "whole")


@pytest.mark.slow
def test_a_disk_that_fills_at_any_write_loses_nothing(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = distillens.run(tiny, tmp_path / "whole")
    sync, writes = os.fsync, [0, 0]

    def fsync(descriptor: int) -> None:
        writes[0] += 1
        if writes[0] > writes[1]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr("distillens.files.atomic.os.fsync", fsync)
    full = 0
    for room in range(1000):
        writes[:] = [0, room]
        kept = {p: p.read_bytes() for p in (tmp_path / "full").rglob("epoch-*")}
        result, message = None, ""
        try:
            result = distillens.run(tiny, tmp_path / "full")
        except RunError as error:
            message = str(error)
        if result is not None:
            assert digests(tmp_path / "full") == digests(tmp_path / "whole")
            assert [row.accuracy for row in result.rows] == [row.accuracy for row in whole.rows]
            break
        assert "No space left on device" in message
        assert "run the same command again" in message
        assert all(path.read_bytes() == content for path, content in kept.items())
        assert not list((tmp_path / "full").rglob("*.part"))
        full += 1
    assert full > 5
