"""Terminals, encodings, paths and recipes as users have them."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import yaml
from conftest import command, refused
from rich.console import Console
from rich.table import Table
from rich.text import Text

import distillens
from distillens import read_recipe
from distillens.cli import terminal
from distillens.cli.main import app
from distillens.errors import DistillensError, RecipeError
from distillens.files.paths import user_path

LIMIT = 1.5
"""Processor seconds that an error of a recipe may take; torch alone takes longer to import."""


def table_of(cells: list[list[str]]) -> Table:
    table = Table()
    for place, cell in enumerate(cells[0]):
        table.add_column(Text(cell), no_wrap=place > 0)
    for row in cells[1:]:
        table.add_row(*(Text(cell) for cell in row))
    return table


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_a_table_keeps_every_word_at_every_width(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = [
        ["supervision", "test % ± std", "gain over no KD", "parameters"],
        ["teacher", "97.2", "–", "75,002"],
        ["online τ=4 pace=2 last 10", "94.3 ± 0.5", "+2.0 [−1.0, +5.1]", "4,810"],
    ]
    monkeypatch.setattr(terminal, "console", Console(width=width))
    terminal.show(table_of(cells))
    shown = capsys.readouterr().out
    for cell in (cell for row in cells for cell in row[1:]):
        assert cell in shown
    for word in ("supervision", "teacher", "online", "τ=4", "pace=2"):
        assert word in shown


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_every_character_is_written_in_every_encoding(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    terminal.prepare_streams()
    text = "τ=4 ± 0.5 → ⁻¹ ✓ 漢"
    stream.write(text)
    stream.flush()
    shown = written.getvalue().decode(encoding)
    expected = {
        "ascii": r"\u03c4=4 \xb1 0.5 \u2192 \u207b\xb9 \u2713 \u6f22",
        "latin-1": r"\u03c4=4 ± 0.5 \u2192 \u207b¹ \u2713 \u6f22",
        "cp1252": r"\u03c4=4 ± 0.5 \u2192 \u207b¹ \u2713 \u6f22",
        "utf-8": text,
    }
    assert shown == expected[encoding]


def test_json_keeps_its_characters_in_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    terminal.prepare_streams()
    value = {"name": "offline τ=4, é, 漢", "number": 0.1}
    terminal.show_json(json.dumps(value, ensure_ascii=False))
    stream.flush()
    assert json.loads(written.getvalue()) == value


def test_every_path_on_the_command_line_takes_a_tilde() -> None:
    found, plain = 0, []
    for registered in app.registered_commands:
        assert registered.callback is not None
        for name, hint in get_type_hints(registered.callback, include_extras=True).items():
            options = getattr(hint, "__metadata__", ())
            if not options or "Path" not in str(get_args(hint)[0]):
                continue
            found += 1
            if options[0].parser is not user_path:
                plain.append(f"{registered.callback.__name__}: {name}")
    assert found > 10
    assert not plain, "give these options parser=user_path"


def test_tilde_is_home_in_options_and_recipes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: dict[str, Any]
) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    logits = np.random.default_rng(0).normal(size=(40, 3))
    np.save(home / "t.npy", logits)
    np.save(home / "y.npy", np.arange(40) % 3)
    given = ("--teacher", "~/t.npy", "--student", "~/t.npy", "--labels", "~/y.npy")
    assert command("audit", *given, "--out=~/audited", "--resamples", 100) == 0
    assert (home / "audited" / "audit.json").is_file()
    tiny["teacher"] = {"logits": {"train": "~/t.npy", "test": "~/u.npy::x"}}
    tiny["data"] = {"source": "npz", "path": "~/data.npz"}
    del tiny["supervisions"][2]
    (here / "r.yaml").write_text(yaml.safe_dump(tiny))
    recipe = read_recipe(here / "r.yaml")
    assert recipe.data.path == str(home / "data.npz")
    assert recipe.teacher.logits == {"train": f"{home}/t.npy", "test": f"{home}/u.npy::x"}
    assert not list(here.glob("~*"))


MERGED = """
name: r
data: {source: digits, test_size: 200}
teacher: {model: {name: mlp}, training: &t {epochs: 1, learning_rate: 0.1}}
student: {model: {name: mlp}, training: {<<: *t, epochs: 2}}
complexity: null
supervisions:
  - {kind: switched, first: &f {kind: offline, temperature: 4}, then: &g {<<: *f, temperature: 2},
     at: 0.5}
  - {<<: *g, temperature: 3}
  - {<<: [*g, {alpha: 0.5}], name: mixed}
"""


def test_merged_keys_of_yaml_are_no_keys_written_twice(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(MERGED)
    recipe: Any = read_recipe(path)
    assert recipe.student.training.epochs == 2
    assert recipe.student.training.learning_rate == 0.1
    assert recipe.supervisions[1].temperature == 3
    assert recipe.supervisions[2].alpha == 0.5
    for twice in ("{kind: one-hot, kind: offline}", "{<<: *g, alpha: 0.1, alpha: 0.2}"):
        path.write_text(f"{MERGED}  - {twice}\n")
        with pytest.raises(RecipeError, match="stands twice"):
            read_recipe(path)


def test_a_value_that_contains_itself_is_one_line(tiny: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(tiny).replace("hidden:\n    - 4", "hidden: &h [*h]"))
    assert "*h" in path.read_text()
    with pytest.raises(RecipeError, match="YAML cannot hold"):
        read_recipe(path)


def test_a_recipe_without_labels_alone_measures_no_complexity(tiny: dict[str, Any]) -> None:
    from distillens.study import parse_recipe

    del tiny["supervisions"][0], tiny["complexity"]
    assert parse_recipe(tiny).complexity is None
    with pytest.raises(RecipeError, match="add a supervision of kind one-hot"):
        parse_recipe({**tiny, "complexity": {"examples": 10}})


BAD = {
    "wrong key": ({"sedes": [1]}, "did you mean 'seeds'"),
    "wrong key inside": ({"student": {"model": {"name": "mlp", "hiden": [3]}}}, "'hidden'"),
    "wrong path": ({"data": {"source": "idx", "path": "nowhere"}}, "no folder nowhere"),
    "wrong file": (
        {"teacher": {"model": {"name": "mlp"}, "checkpoint": "no.pt"}},
        "no file no.pt; teacher.checkpoint",
    ),
    "wrong model": ({"student": {"model": {"name": "resnet21"}}}, "did you mean 'resnet"),
    "wrong supervision": ({"supervisions": [{"kind": "ofline"}]}, "offline"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_with_a_recipe_is_said_before_torch_is_imported(
    name: str, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    changes, message = BAD[name]
    for key, value in changes.items():
        tiny[key] = {**tiny[key], **value} if key == "student" else value
    if name == "wrong file":
        del tiny["supervisions"][2]
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(tiny))
    # The command that users type, in an interpreter in which torch cannot be imported at all.
    program = (
        "import sys, time; sys.modules['torch'] = None\n"
        "from distillens.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print(time.process_time())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "run", path, "--out", tmp_path / "out"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert float(done.stdout) < LIMIT
    assert not (tmp_path / "out").exists()


def test_check_finds_all_problems_and_trains_nothing(
    tmp_path: Path, tiny: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    from distillens.results.base import from_json
    from distillens.results.check import RecipeCheck

    path, out = tmp_path / "r.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(tiny))
    assert command("check", path, "--out", out, "--json") == 0
    found = from_json(RecipeCheck, capsys.readouterr().out, "standard output")
    assert not out.exists()
    assert found.data is not None
    assert found.data.classes == tuple("0123456789")
    assert (found.data.train, found.data.test) == (120, 100)
    assert sum(found.data.train_counts) == 120
    assert {network.role: network.parameters for network in found.networks} == {
        "teacher": 64 * 32 + 32 + 32 * 10 + 10,
        "student": 64 * 4 + 4 + 4 * 10 + 10,
    }
    assert found.supervisions == (("no KD", 1), ("offline τ=4", 1), ("online τ=4", 1))
    assert found.estimate is not None
    # Weights in float32 of 4 checkpoints of each network, with the header of each file, and logits of
    # the teacher's three epochs, the last of which is also the finished teacher.
    sizes = [4 * network.parameters for network in found.networks]
    headers = found.estimate.checkpoints - 4 * (sizes[0] + 3 * sizes[1])
    assert 0 < headers < 4 * 4 * 400
    assert found.estimate.cache == 3 * (120 * 10 * 4 + 128)
    tiny["student"]["training"]["learning_rate"] = -1
    tiny["seeds"] = [0, 0]
    tiny["data"]["train_size"] = "many"
    path.write_text(yaml.safe_dump(tiny))
    assert command("check", path, "--out", out) == 2
    shown = " ".join(capsys.readouterr().out.split())
    assert "learning_rate" in shown
    assert "train_size" in shown


def test_check_names_a_batch_that_batch_norm_cannot_take(
    tmp_path: Path, tiny: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    tiny["student"]["model"] = {"name": "resnet8"}
    tiny["data"]["train_size"] = 129
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(tiny))
    assert command("check", path) == 2
    assert "BatchNorm" in capsys.readouterr().out


def test_a_start_that_failed_does_not_block_the_corrected_recipe(
    tmp_path: Path, tiny: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "r.yaml", tmp_path / "out"
    broken = {
        "no teacher": {"teacher": {"model": {"name": "mlp"}, "checkpoint": "no.pt"}},
        "no run": {"teacher": {"run": str(tmp_path / "no")}},
        "too many examples": {"data": {**tiny["data"], "train_size": 10_000}},
        "student cannot be built": {
            "student": {**tiny["student"], "model": {"name": "vgg16", "dropout": 2}}
        },
        "diverges at once": {
            "teacher": {
                **tiny["teacher"],
                "training": {**tiny["teacher"]["training"], "learning_rate": 1e30},
            }
        },
    }
    for name, changes in broken.items():
        recipe = {**tiny, **changes}
        if "training" not in recipe["teacher"]:
            recipe["supervisions"] = [{"kind": "one-hot"}]
        path.write_text(yaml.safe_dump(recipe))
        assert refused(capsys, "run", path, "--out", out), name
    tiny["supervisions"] = tiny["supervisions"][:1]
    tiny["complexity"] = None
    path.write_text(yaml.safe_dump(tiny))
    assert command("run", path, "--out", out) == 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seeds=3", "seeds: a list is needed, got 3"),
        ("student.model=mlp", "student.model: keys with values are needed, got 'mlp'"),
        ("supervisions.0.kind=onehot", "supervisions.0: no kind 'onehot'; did you mean 'one-hot'?"),
        ("tune={learning_rate: [0.1]}", "the list needs at least 2 entries"),
        ("data.path=x.npz", "path belongs to source"),
        ("data.label_column=fine", "label_column belongs to source 'huggingface' or 'text'"),
        ("data.image_column=image", "image_column belongs to source 'huggingface'"),
        ("data={source: text, path: x, image_column: y}", "image_column belongs to source"),
    ],
)
def test_values_of_the_wrong_kind_are_described_in_words_of_yaml(
    override: str, message: str, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(tiny))
    with pytest.raises(RecipeError) as raised:
        read_recipe(path, [override])
    assert message in str(raised.value)


def test_a_missing_file_says_from_where_it_is_counted(
    tmp_path: Path,
    tiny: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny["teacher"] = {"run": "elsewhere"}
    tiny["data"] = {"source": "npz", "path": "x.npz"}
    Path("r.yaml").write_text(yaml.safe_dump(tiny))
    assert command("check", "r.yaml", "--out", tmp_path / "out", "--json") == 2
    found = json.loads(capsys.readouterr().out)["problems"]
    assert any("no file x.npz; " in problem and str(tmp_path) in problem for problem in found)
    assert len(found) == 2


def test_a_folder_in_place_of_a_recipe_names_the_recipe_in_it(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: q")
    with pytest.raises(RecipeError, match=f"is a folder; .* such as {tmp_path}/recipe.yaml"):
        read_recipe(tmp_path)


OWN_LOSSES = """
def too_few(student, teacher):
    return student.sum()


def fails(student, teacher, labels):
    return student.nothing
"""


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("too_few", "cannot be called with student logits, teacher logits and labels"),
        ("fails", "stops with AttributeError"),
    ],
)
def test_a_loss_of_ones_own_that_fails_is_one_line(
    loss: str, message: str, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    (tmp_path / "own_losses.py").write_text(OWN_LOSSES)
    tiny["teacher"]["training"]["epochs"] = 1
    tiny["supervisions"] = [{"kind": "offline", "loss": {"name": f"own_losses:{loss}"}}]
    del tiny["complexity"]
    tiny["code"] = str(tmp_path)
    with pytest.raises(DistillensError) as raised:
        distillens.run(tiny, tmp_path / "run", trust_code=True)
    assert message in str(raised.value)


def test_names_of_emoji_are_text(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.show_line("report: runs/a:cat:b/report.html")
    assert capsys.readouterr().out == "report: runs/a:cat:b/report.html\n"


def test_json_of_a_run_stands_alone_on_the_output(
    tmp_path: Path, tiny: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    tiny["supervisions"] = tiny["supervisions"][:1]
    distillens.run({**tiny, "complexity": None}, tmp_path / "run")
    capsys.readouterr()
    assert (
        command("measure", tmp_path / "run", "complexity", "examples=16", "epochs=[0]", "--json")
        == 0
    )
    assert json.loads(capsys.readouterr().out)["result"]["examples"] == 16
