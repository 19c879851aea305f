"""`distillens audit` on every format, and one clear line for input that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv, parquet
from safetensors.numpy import save_file

from distillens.cli.main import main
from distillens.errors import DataError
from distillens.files.arrays import read_rows, read_splits
from distillens.results.base import from_json
from distillens.results.confidence import Audit

N, C = 60, 3


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    teacher = 3 * rng.normal(size=(N, C)).astype(np.float32)
    student = (1.5 * teacher + rng.normal(size=(N, C))).astype(np.float32)
    return {"teacher": teacher, "student": student, "labels": np.arange(N) % C}


def save(folder: Path, name: str, array: np.ndarray, form: str) -> str:
    path = folder / f"{name}.{form}"
    array = np.ascontiguousarray(array)
    if form == "npy":
        np.save(path, array)
    elif form == "npz":
        np.savez(path, values=array)
    elif form == "safetensors":
        save_file({"values": array}, path)
    else:
        columns = array.reshape(len(array), -1)
        table = pa.table({f"c{i}": column for i, column in enumerate(columns.T)})
        (csv.write_csv if form == "csv" else parquet.write_table)(table, path)
    return str(path)


def saved(folder: Path, arrays: dict[str, np.ndarray], form: str = "npy") -> list[str]:
    words = ["audit", "--resamples", "100"]
    for name, array in arrays.items():
        words += [f"--{name}", save(folder, name, array, form)]
    return words


def printed(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main(words)
    captured = capsys.readouterr()
    assert stop.value.code == 0, captured.err
    return captured.out


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main(words)
    captured = capsys.readouterr()
    assert stop.value.code == 2
    assert captured.err.startswith("distillens: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize("form", ["npy", "npz", "csv", "parquet", "safetensors"])
def test_every_format_gives_the_same(form, arrays, tmp_path, capsys):
    words = saved(tmp_path, arrays, form)
    found = from_json(Audit, printed([*words, "--json"], capsys), "standard output")
    wanted = json.loads(printed([*saved(tmp_path, arrays), "--json"], capsys))
    (split,) = found.splits
    slope = wanted["splits"][0]["exaggeration"]["slope_all"]["ordinary"]["value"]
    assert split.exaggeration.slope_all.ordinary.value == pytest.approx(slope, rel=1e-5)
    assert split.ledger.departures == wanted["splits"][0]["ledger"]["departures"] > 0


def test_the_documented_keys_of_a_student_equal_to_its_teacher(arrays, tmp_path, capsys):
    arrays["student"] = arrays["teacher"]
    (split,) = json.loads(printed([*saved(tmp_path, arrays), "--json"], capsys))["splits"]
    assert split["exaggeration"]["slope_all"]["ordinary"]["value"] == 1
    assert split["ledger"]["departures"] == 0
    assert split["fidelity"]["identical"] is True


def test_words_and_files(arrays, tmp_path, capsys):
    arrays["mislabelled"] = (np.arange(N) % 7 == 0).astype(np.int8)
    arrays["reference"] = 0.5 * arrays["teacher"][::-1]
    words = saved(tmp_path, arrays)
    text = printed([*words, "--out", str(tmp_path / "out")], capsys)
    for part in ("verdict", "one-hot student", "McNemar p", "detected", "Mislabelled examples (9)"):
        assert part in " ".join(text.split()), text
    found = from_json(Audit, (tmp_path / "out/audit.json").read_text(), "audit.json")
    assert found.splits[0].examples == N
    with np.load(tmp_path / "out/points-all.npz") as points:
        assert {key: len(points[key]) for key in points.files} == dict.fromkeys(
            ("x", "y", "who", "mislabelled", "teacher_class", "student_class"), N
        )
        top = arrays["student"].argmax(1)
        assert points["student_class"].tolist() == top.tolist()
        assert points["mislabelled"].sum() == 9
    page = (tmp_path / "out/audit.html").read_text(encoding="utf-8")
    assert "all, by mislabelled or not" in page
    assert "Over training" not in page
    assert (tmp_path / "out/confidence.svg").is_file()
    assert not (tmp_path / "out/over-training.svg").exists()


def test_several_splits(arrays, tmp_path, capsys):
    words = ["audit", "--resamples", "100", "--json"]
    for name, array in arrays.items():
        for split, rows in (("train", slice(0, 40)), ("test", slice(40, N))):
            words += [f"--{name}", f"{split}={save(tmp_path, name + split, array[rows], 'npy')}"]
    found = json.loads(printed(words, capsys))["splits"]
    assert [(split["split"], split["examples"]) for split in found] == [("train", 40), ("test", 20)]


def with_nan(a):
    a["student"][41, 1] = np.nan


def with_a_bad_row(a):
    for role in ("teacher", "student"):
        a[role] = np.full((N, C), 1 / C, dtype=np.float32)
    a["teacher"][7] = [0.5, 0.1, 0.1]


def with_other_length(a):
    a["student"] = a["student"][:-1]


def with_short_labels(a):
    a["labels"] = a["labels"][:-1]


def with_other_classes(a):
    a["student"] = np.concatenate([a["student"], a["student"]], axis=1)


def with_a_large_label(a):
    a["labels"] = a["labels"] + 1


def with_one_class(a):
    a["labels"] = np.zeros(N, dtype=int)


def with_single_column_of_ones(a):
    a["teacher"] = np.ones((N, 1), dtype=np.float32)


def with_nothing(a):
    for role in list(a):
        a[role] = a[role][:0]


def with_float_labels(a):
    a["labels"] = a["labels"] / 2


def with_a_bad_mask(a):
    a["mislabelled"] = np.arange(N)


@pytest.mark.parametrize(
    ("spoil", "more", "message"),
    [
        (with_other_length, [], "the teacher has 60 rows, the student 59"),
        (with_short_labels, [], "the teacher has 60 rows, the labels 59"),
        (with_other_classes, [], "the teacher has 3 classes, the student 6"),
        (with_nan, [], "student's outputs are NaN or infinite at row 41"),
        (with_a_bad_row, [], "name it with kind"),
        (
            with_a_bad_row,
            ["--kind", "probabilities"],
            "teacher's probabilities sum to 0.7 at row 7",
        ),
        (with_a_large_label, [], "labels go from 1 to 3"),
        (None, ["--kind", "probabilities"], "if they are logits, set kind"),
        (with_one_class, [], "all labels are class 0"),
        (with_single_column_of_ones, [], "a single output within [0, 1]"),
        (with_nothing, [], "hold no examples"),
        (with_float_labels, [], "give integers"),
        (with_a_bad_mask, [], "give a mask"),
        (None, ["--kind", "logit"], "'logit'; give logits or probabilities"),
        (None, ["--resamples", "5"], "5 resamples are too few"),
        (None, ["--reference", "missing.npy"], "there is no file missing.npy"),
        (None, ["--reference", "teacher.txt"], "ends in '.txt'"),
    ],
)
def test_bad_input_is_one_line(spoil, more, message, arrays, tmp_path, capsys):
    if spoil is not None:
        spoil(arrays)
    assert message in refused([*saved(tmp_path, arrays), *more], capsys)


def test_a_later_row_that_is_no_probability_is_found(arrays, tmp_path, capsys):
    good = np.full((5000, 2), 0.5, dtype=np.float32)
    bad = good.copy()
    bad[4500] = [0.5, 0.9]
    words = saved(tmp_path, {"teacher": good, "student": bad, "labels": np.arange(5000) % 2})
    assert "sum to 1.4 at row 4500" in refused(words, capsys)


@pytest.mark.parametrize("form", ["npz", "csv", "parquet", "safetensors"])
def test_shuffled_rows_are_matched_by_index_or_refused_without(form, arrays, tmp_path, capsys):
    index = np.arange(100, 100 + N)
    order = np.r_[0:5, np.arange(5, N)[::-1]]

    def write(name: str, rows: np.ndarray) -> str:
        path = tmp_path / f"{name}.{form}"
        values = arrays[name][rows]
        if form == "npz":
            np.savez(path, values=values, index=index[rows])
        elif form == "safetensors":
            save_file({"values": values, "index": index[rows]}, path)
        else:
            columns = values.reshape(N, -1).T
            table = pa.table(
                {"index": index[rows], **{f"c{i}": column for i, column in enumerate(columns)}}
            )
            (csv.write_csv if form == "csv" else parquet.write_table)(table, path)
        return str(path)

    words = ["audit", "--json", "--resamples", "100", "--teacher", write("teacher", order)]
    words += ["--student", write("student", np.arange(N)), "--labels"]
    matched = json.loads(printed([*words, write("labels", np.arange(N)[::-1])], capsys))["splits"]
    labels = save(tmp_path, "bare", arrays["labels"], "npy")
    line = refused([*words, labels], capsys)
    assert "at row 5 the teacher's index is 159, the student's 105; sort both by index" in line
    write("teacher", np.arange(N))
    (split,) = json.loads(printed([*words, labels], capsys))["splits"]
    assert "rows were matched by index" in matched[0]["notes"]
    assert matched[0]["ledger"]["all"] == split["ledger"]["all"]
    assert matched[0]["fidelity"]["agreement"] == split["fidelity"]["agreement"]


# --- files ---


def test_maps_where_the_format_allows(arrays, tmp_path):
    for form in ("npy", "safetensors"):
        rows = read_rows(save(tmp_path, "teacher", arrays["teacher"], form))
        assert isinstance(rows.values, np.memmap)
        np.testing.assert_array_equal(rows.values, arrays["teacher"])


def test_keys_and_columns(arrays, tmp_path):
    path = tmp_path / "both.npz"
    np.savez(path, teacher=arrays["teacher"], student=arrays["student"])
    np.testing.assert_array_equal(read_rows(f"{path}::student").values, arrays["student"])
    with pytest.raises(DataError, match="holds 2 arrays"):
        read_rows(path)
    with pytest.raises(DataError, match="did you mean 'teacher'"):
        read_rows(f"{path}::teachr")
    table = pa.table({"label": np.arange(4), "text": ["a", "b", "c", "d"]})
    parquet.write_table(table, tmp_path / "t.parquet")
    assert read_rows(f"{tmp_path}/t.parquet::text").values.tolist() == ["a", "b", "c", "d"]
    with pytest.raises(DataError, match="columns of several kinds"):
        read_rows(tmp_path / "t.parquet")


def test_lists_and_headless_tables(tmp_path):
    values = [[1.0, 2.0], [3.0, 4.0]]
    parquet.write_table(pa.table({"logits": values}), tmp_path / "l.parquet")
    assert read_rows(tmp_path / "l.parquet").values.tolist() == values
    (tmp_path / "h.csv").write_text("1,2\n3,4\n")
    assert read_rows(tmp_path / "h.csv").values.tolist() == [[1, 2], [3, 4]]
    parquet.write_table(pa.table({"logits": [[1.0], [1.0, 2.0]]}), tmp_path / "r.parquet")
    with pytest.raises(DataError, match="have 1 to 2 values"):
        read_rows(tmp_path / "r.parquet")


@pytest.mark.parametrize("form", ["npy", "npz", "csv", "parquet", "safetensors"])
def test_damaged_files(form, tmp_path):
    path = tmp_path / f"x.{form}"
    path.write_bytes(b"\x93NUMPY not really\xff\xfe")
    with pytest.raises(DataError, match=r"x\."):
        read_rows(path)


def test_several_files_name_their_splits():
    with pytest.raises(DataError, match="names no split"):
        read_splits(["a.npy", "test=b.npy"])
