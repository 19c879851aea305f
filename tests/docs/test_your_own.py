"""The page on teachers, data, logits and training loops of one's own runs as it is written."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "your-own.md").read_text()


@pytest.mark.slow
def test_the_page_runs_as_written(tmp_path: Path) -> None:
    said: dict[str, str] = {}
    for language, body in re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL):
        if language != "console":
            (tmp_path / body.splitlines()[0].removeprefix("# ")).write_text(body)
            continue
        for line in body.splitlines():
            program, *arguments = shlex.split(line)
            own = ["-m", "distillens"] if program == "distillens" else []
            done = subprocess.run(
                [sys.executable, *own, *arguments],
                cwd=tmp_path,
                env={**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            said[line] = done.stdout
    assert len(said) == 7
    run = said["distillens run recipe.yaml --trust-code --out runs/checkpoint"]
    assert "removed the prefix 'module.'" in run
    assert "Learning rate chosen on validation" in run
    assert "no problem found" in said["distillens check recipe.yaml --trust-code"]
    assert "Fidelity" in next(text for line, text in said.items() if " audit " in line)
