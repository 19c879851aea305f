"""The audit on files, tables and tensors that other programs made."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.special
import torch
from conftest import command, refused
from pyarrow import parquet
from safetensors.torch import save_file

import distillens as dl
from distillens.errors import DataError, DistillensError, MeasureError
from distillens.files.arrays import read_splits
from distillens.measures.confidence.per_example_statistics import differences
from distillens.results.confidence import SplitAudit

N, C = 200, 5
NAMES = ["cat", "dog", "emu", "fox", "gnu"]


def made() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(C, size=N)
    teacher = rng.normal(size=(N, C))
    teacher[np.arange(N), labels] += 2
    return teacher, 0.7 * teacher + 0.5 * rng.normal(size=(N, C)), labels


T, S, Y = made()
P, Q = (scipy.special.softmax(z, axis=1) for z in (T, S))
D, E = pd.DataFrame(T, columns=NAMES), pd.DataFrame(S, columns=NAMES)


def audited(teacher: Any, student: Any, labels: Any, **more: Any) -> SplitAudit:
    (split,) = dl.audit(teacher, student, labels, resamples=100, **more).splits
    return split


PLAIN = audited(T, S, Y)


def assert_same(found: SplitAudit, rel: float = 1e-9) -> None:
    """Assert that an audit found what it finds in the plain arrays."""
    assert found.examples == N
    assert found.ledger.all == PLAIN.ledger.all
    for shown, wanted in zip(found.calibration, PLAIN.calibration, strict=True):
        assert shown.accuracy == wanted.accuracy
        assert shown.nll.value == pytest.approx(wanted.nll.value, rel=rel)
    for name in ("kl_teacher_student", "kl_student_teacher", "total_variation"):
        wanted = getattr(PLAIN.fidelity, name).value
        assert getattr(found.fidelity, name).value == pytest.approx(wanted, rel=rel)


# --- csv ---

EXACT = D.set_axis(range(C), axis=1)
"""The teacher's logits as a DataFrame without names."""


def text(**more: Any) -> str:
    found = EXACT.to_csv(**more)
    assert isinstance(found, str)
    return found


BARE = text(header=False, index=False)
CSV: dict[str, str | bytes] = {
    "row numbers": text(),
    "row numbers read and written again": D.reset_index(names="Unnamed: 0").to_csv(index=False),
    "a header of numbers": text(index=False),
    "a header of class ids": D.set_axis([3, 7, 9, 12, 40], axis=1).to_csv(index=False),
    "no header": BARE,
    "decimal commas": text(sep=";", decimal=",", index=False),
    "decimal commas and row numbers": text(sep=";", decimal=","),
    "quoted decimal commas": text(decimal=",", quoting=1, header=False, index=False),
    "quoted": text(quoting=1),
    "tabs": text(sep="\t", header=False, index=False),
    "spaces": text(sep=" ", header=False, index=False),
    "byte order mark": BARE.encode("utf-8-sig"),
    "byte order mark and header": text().encode("utf-8-sig"),
    "UTF-16": text().encode("utf-16"),
    "UTF-16 without a mark": BARE.encode("utf-16-le"),
    "line ends of Windows and blank lines": BARE.replace("\n", "\r\n") + "\r\n\r\n",
    "line ends of old Macs": text(index=False).replace("\n", "\r"),
    "comments": "# made by\n\n# somebody\n" + BARE.replace("\n", "\n# half\n", 1),
    "numpy's header": "# " + ",".join(NAMES) + "\n" + BARE,
    "delimiters at the end": BARE.replace("\n", ",\n"),
    "delimiters at the end, not of the header": ",".join(NAMES) + "\n" + BARE.replace("\n", ",\n"),
    "empty rows at the end": text(index=False) + ",,,,\n,,,,\n",
    "row names of R": ",".join(NAMES) + "\n" + text(header=False),
}


@pytest.mark.parametrize("kind", CSV)
def test_csv_files_of_other_programs_are_read_completely(kind: str, tmp_path: Path):
    content = CSV[kind]
    path = tmp_path / "t.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    np.testing.assert_array_equal(dl.read_rows(path).values, T)


def test_compressed_and_tab_separated_files(tmp_path: Path):
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(text().encode()))
    (tmp_path / "t.tsv").write_text(text(sep="\t"))
    for name in ("t.csv.gz", "t.tsv"):
        rows = dl.read_rows(tmp_path / name)
        np.testing.assert_array_equal(rows.values, T)
        np.testing.assert_array_equal(rows.index, np.arange(N))


@pytest.mark.parametrize(
    ("content", "values"),
    [
        ("1.0,0.0\n0.25,0.75\n", [[1, 0], [0.25, 0.75]]),
        ("2,5\n3,4\n", [[2, 5], [3, 4]]),
        ("0,1,1\n0.5,0.25,0.25\n", [[0, 1, 1], [0.5, 0.25, 0.25]]),
        ("cat\ndog\ncat\n", ["cat", "dog", "cat"]),
        ("label\ncat\ndog\n", ["cat", "dog"]),
        ("4\n0\n1\n", [4, 0, 1]),
    ],
)
def test_a_first_row_of_values_stays(content: str, values: list, tmp_path: Path):
    (tmp_path / "t.csv").write_text(content)
    rows = dl.read_rows(tmp_path / "t.csv")
    assert rows.values.tolist() == values
    assert not rows.unclear_header


@pytest.mark.parametrize("first", ["0,1", "1,0"])
def test_a_saturated_prediction_in_the_first_row_is_told_by_its_length(first: str, tmp_path: Path):
    (tmp_path / "t.csv").write_text(f"{first}\n0.25,0.75\n0.5,0.5\n")
    rows = dl.read_rows(tmp_path / "t.csv")
    assert rows.unclear_header
    assert rows.values.tolist()[1:] == [[0.25, 0.75], [0.5, 0.5]]
    wanted = [[float(one) for one in first.split(",")], [0.25, 0.75], [0.5, 0.5]]
    for start in (0, 1):
        found = audited(rows, wanted[start:], [0, 1, 0][start:], kind="probabilities")
        assert found.examples == 3 - start
        assert found.fidelity.identical


@pytest.mark.parametrize("first", [0, 3])
def test_a_label_file_with_the_header_0_is_told_by_its_length(first: int, tmp_path: Path):
    labels = np.r_[first, Y[1:]]
    pd.Series(labels).to_csv(tmp_path / "headed.csv", index=False)
    pd.Series(labels).to_csv(tmp_path / "bare.csv", index=False, header=False)
    wanted = audited(T, S, labels)
    for name in ("headed", "bare"):
        assert audited(T, S, dl.read_rows(tmp_path / f"{name}.csv")).ledger == wanted.ledger
    rows = dl.read_rows(tmp_path / "headed.csv", header=True)
    assert rows.values.tolist() == labels.tolist()


def test_a_header_that_may_be_data_everywhere_is_refused_by_the_option(tmp_path: Path, capsys):
    for name, table in (("t", np.rint(9 * T)), ("s", np.rint(9 * S)), ("y", Y)):
        pd.DataFrame(table.astype(int)).to_csv(tmp_path / f"{name}.csv", index=False)
    words = ["audit", "--teacher", tmp_path / "t.csv", "--student", tmp_path / "s.csv"]
    words += ["--labels", tmp_path / "y.csv", "--resamples", 100, "--json"]
    assert "--header or --no-header" in refused(capsys, *words)
    assert command(*words, "--header") == 0
    assert json.loads(capsys.readouterr().out)["splits"][0]["examples"] == N


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,a,b\nx.png,1,2\ny.png,3,4\n", "--index image.*--drop image"),
        ("id,a,b\n7,0.5,1\n7,2.5,3\n", "--drop id"),
        (",id,a,b\n0,7,0.5,1\n1,8,2.5,3\n", "--index id.*--drop f0"),
        ("a,a\n1,2\n", "several columns named 'a'"),
        ("a,b\n1,\n2,3\n", "'b' has 1 empty cells, the first at row 0"),
        ("a,b\n1,2\n3\n", "Expected 2 columns, got 1"),
        ("a,b\n", "a header and no rows"),
        ("", "no rows"),
    ],
)
def test_tables_that_cannot_be_read_name_the_option(content: str, message: str, tmp_path: Path):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(DistillensError, match=message):
        audited(dl.read_rows(tmp_path / "t.csv"), [[0.5, 1], [2.5, 3]], [0, 1])


# --- columns and rows ---


@pytest.mark.parametrize(
    "column",
    [
        np.arange(N), np.arange(1, N + 1), np.arange(N, dtype=np.float32),
        np.random.default_rng(0).permutation(N) + 500, T.argmax(axis=1), Y,
    ],
    ids=["from 0", "from 1", "floats", "shuffled", "predicted", "labels"],
)  # fmt: skip
@pytest.mark.parametrize("outputs", [(T, S), (P, Q)], ids=["logits", "probabilities"])
def test_columns_that_are_no_class_are_refused(column: np.ndarray, outputs: tuple):
    both = [np.column_stack([column, z]) for z in outputs]
    with pytest.raises(MeasureError, match=r"column 'f0'.*--drop teacher=f0.*--index.*--keep"):
        audited(both[0], both[1], Y)
    kept = [dl.Rows(z, keep=("f0",)) for z in both]
    assert audited(kept[0], kept[1], Y, kind="logits").calibration[0].accuracy.value < 0.9


@pytest.mark.parametrize("form", ["csv", "npy", "parquet"])
def test_options_resolve_what_is_refused(form: str, tmp_path: Path, capsys):
    table = pd.DataFrame(np.column_stack([np.arange(N), T]), columns=["shot", *NAMES])
    path = tmp_path / f"t.{form}"
    if form == "csv":
        table.to_csv(path, index=False)
    elif form == "npy":
        np.save(path, table.to_numpy())
    else:
        table.to_parquet(path)
    np.save(tmp_path / "s.npy", S)
    np.save(tmp_path / "y.npy", Y)
    words = ["audit", "--teacher", path, "--student", tmp_path / "s.npy", "--resamples", 100]
    words += ["--labels", tmp_path / "y.npy", "--json"]
    name = "teacher=f0" if form == "npy" else "shot"
    assert f"--drop {name}, use it as the index" in refused(capsys, *words)
    for option in ("--drop", "--index"):
        assert command(*words, option, name) == 0
        (split,) = json.loads(capsys.readouterr().out)["splits"]
        assert split["ledger"]["departures"] == PLAIN.ledger.departures
    assert "no file has such a column" in refused(capsys, *words, "--drop", "shoot")


def test_columns_are_matched_by_name():
    upper = [str(name).upper() for name in NAMES[::-1]]
    for student in (E[NAMES[::-1]], E[NAMES[::-1]].set_axis(upper, axis=1)):
        assert_same(audited(D, student, Y))
    both = D.add_prefix("teacher_"), E[NAMES[::-1]].add_prefix("student_")
    assert_same(audited(*both, Y))
    assert_same(audited(EXACT, E.set_axis(range(C), axis=1)[[4, 3, 2, 1, 0]], Y))
    found = audited(D, S, Y)
    assert_same(found)
    one_named = audited(EXACT, E, Y)
    assert_same(one_named)
    assert any("matched by position" in note for note in one_named.notes)
    with pytest.raises(MeasureError, match="'cat' only in the teacher's outputs, 'cow' only in"):
        audited(D, E.rename(columns={"cat": "cow"}), Y)


@pytest.mark.parametrize(
    "labels",
    [
        np.array(NAMES)[Y], np.array(NAMES, dtype="S")[Y], pd.Series(np.array(NAMES)[Y]),
        pd.Series(np.array(NAMES)[Y], dtype="category"), Y.astype(float), Y.astype(str),
        Y[:, None], np.eye(C)[Y], pd.get_dummies(pd.Series(np.array(NAMES)[Y]))[NAMES[::-1]],
        torch.tensor(Y, dtype=torch.uint8), Y.tolist(), pa.array(Y),
    ],
    ids=str,
)  # fmt: skip
def test_labels_as_names_numbers_or_one_hot(labels: Any):
    assert_same(audited(D, E, labels))


def test_labels_are_looked_up_in_a_header_of_class_ids():
    ids = np.array([3, 7, 9, 12, 40])
    assert_same(audited(D.set_axis(ids, axis=1), E.set_axis(ids, axis=1), ids[Y]))
    assert_same(audited(D.set_axis(ids, axis=1), E.set_axis(ids, axis=1), Y))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.r_[["cow"], np.array(NAMES)[Y[1:]]], "the label 'cow' is no class in the header"),
        (Y + 0.5, "the label of row 0 is"),
        (np.full((N, C), 1 / C), "rows are not one-hot"),
        (np.stack([Y, Y], axis=1), r"labels have shape \(200, 2\)"),
        ([None, *Y[1:]], "labels hold None"),
        (Y + 1, "labels go from 1 to 5"),
    ],
)
def test_labels_that_are_no_classes(labels: Any, message: str):
    with pytest.raises(MeasureError, match=message):
        audited(D, E, labels)


def test_classes_without_examples_are_counted_from_the_outputs():
    few = Y < C - 1
    assert dl.audit(T[few], S[few], Y[few], resamples=100).classes == C


def test_rows_are_matched_by_index():
    ids = np.random.default_rng(1).permutation(N) + 1000
    reverse = slice(None, None, -1)
    plain = dl.Rows(T, ids), dl.Rows(S[reverse], ids[reverse]), dl.Rows(Y, ids)
    assert_same(audited(*plain))
    as_text = dl.Rows(S[reverse], ids[reverse].astype("S"))
    assert_same(audited(plain[0], as_text, plain[2]))
    frames = D.set_axis(ids), E.set_axis(ids).sample(frac=1, random_state=0), pd.Series(Y, ids)
    assert_same(audited(*frames))
    # Numbers that a file names "id" or that were given identify examples.
    shuffled = np.random.default_rng(2).permutation(N)
    rows = dl.Rows(T, np.arange(N)), dl.Rows(S[shuffled], shuffled), dl.Rows(Y, np.arange(N))
    assert_same(audited(*rows))
    some = audited(plain[0], dl.Rows(S[:150], ids[:150]), plain[2])
    assert some.ledger.all == audited(T[:150], S[:150], Y[:150]).ledger.all
    assert any("50 of the teacher's 200 rows were left out" in note for note in some.notes)


def test_rows_that_cannot_be_matched_are_refused():
    ids = np.arange(N)[::-1] + 1000
    with pytest.raises(MeasureError, match="or give the labels an index too"):
        audited(D.set_axis(ids), E.set_axis(ids).sample(frac=1, random_state=0), Y)
    # The default index of outputs that were computed from shuffled data says nothing about them.
    with pytest.raises(MeasureError, match="may be of before or after a shuffling"):
        audited(D, E, pd.Series(Y, np.random.default_rng(2).permutation(N)))
    assert_same(audited(D, E, pd.Series(Y, ids)))
    # Row numbers do not say which half of the examples a file holds.
    half = dl.Rows(S[:100], np.arange(100))
    with pytest.raises(MeasureError, match="the teacher has 200 rows, the student 100"):
        audited(dl.Rows(T, np.arange(N)), half, dl.Rows(Y, np.arange(N)))
    with pytest.raises(MeasureError, match="index repeats"):
        audited(dl.Rows(T, ids // 2), dl.Rows(S, ids // 2), Y)
    with pytest.raises(MeasureError, match="no row has the same index"):
        audited(dl.Rows(T, ids), dl.Rows(S, ids + 5000), dl.Rows(Y, ids))


# --- arrays of other libraries and formats ---


class Foreign:
    """An array of a library that only knows the array protocol."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.values.astype(dtype or self.values.dtype)


@pytest.mark.parametrize(
    "convert",
    [
        lambda z: torch.tensor(z, requires_grad=True),
        lambda z: list(torch.tensor(z)),
        lambda z: torch.tensor(z).to_sparse(),
        lambda z: z[:, None, :],
        lambda z: z[:, :, None, None],
        lambda z: z.astype(">f8"),
        lambda z: np.flip(np.flip(z, 1).copy(), 1),
        Foreign,
        pd.DataFrame,
        lambda z: pa.table(pd.DataFrame(z)),
        lambda z: pa.array(list(z)),
        lambda z: z - scipy.special.logsumexp(z, axis=1, keepdims=True),
        lambda z: scipy.special.softmax(z, axis=1),
        lambda z: 100 * scipy.special.softmax(z, axis=1),
    ],
)
def test_the_same_outputs_in_other_hands(convert: Callable[[np.ndarray], Any]):
    assert_same(audited(convert(T), S, Y))
    assert_same(audited(T, convert(S), Y))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_tensors_of_16_bits_are_what_their_numbers_say(kind: torch.dtype, tmp_path: Path):
    t, s = torch.tensor(T, dtype=kind), torch.tensor(S, dtype=kind)
    wanted = audited(t.double().numpy(), s.double().numpy(), Y)
    assert audited(t, s, torch.tensor(Y)) == wanted
    save_file({"t": t, "s": s}, tmp_path / "z.safetensors")
    read = [dl.read_rows(f"{tmp_path}/z.safetensors::{name}") for name in "ts"]
    assert audited(read[0], read[1], Y) == wanted


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.where(np.arange(N) == 7, np.nan, T.T).T, "NaN or infinite at row 7"),
        (np.where(np.arange(N) == 7, np.inf, T.T).T, "NaN or infinite at row 7"),
        (np.where(np.arange(N) == 7, -np.inf, T.T).T, "NaN or infinite at row 7"),
        (T.astype(object), "type object"),
        (T + 0j, "type complex128"),
        (T.argmax(axis=1), "predicted classes are not enough"),
        ([[1.0, 2.0], [3.0]], "cannot be read as an array"),
        (np.ma.masked_less(T, 0), "masked values"),
        ("teacher.csv", "read files with read_rows"),
    ],
)
def test_outputs_that_are_no_numbers(values: Any, message: str):
    with pytest.raises(DistillensError, match=message):
        audited(values, S, Y)


def test_masked_classes_have_probability_0():
    t, s = (np.where(np.arange(C) == 4, -np.inf, z) for z in (T, S))
    found, wanted = audited(t, s, Y % 4), audited(T[:, :4], S[:, :4], Y % 4)
    kl = found.fidelity.kl_teacher_student.value
    assert kl == pytest.approx(wanted.fidelity.kl_teacher_student.value, rel=1e-12)
    assert found.ledger.all == wanted.ledger.all


LISTS: dict[str, pa.Array] = {
    "list": pa.array(list(T)),
    "large_list": pa.array(list(T), type=pa.large_list(pa.float64())),
    "fixed_size_list": pa.array(list(T), type=pa.list_(pa.float64(), C)),
    "list_view": pa.array(list(T), type=pa.list_view(pa.float64())),
    "nested": pa.array([[list(row)] for row in T]),
    "sliced": pa.array([[0.0] * C, *T])[1:],
    "tensors": pa.FixedShapeTensorArray.from_numpy_ndarray(T),
    "float16": pa.array([list(row) for row in T.astype(np.float16)], type=pa.list_(pa.float16())),
}


@pytest.mark.parametrize("kind", LISTS)
def test_lists_of_arrow(kind: str, tmp_path: Path):
    table = pa.table({"logits": LISTS[kind]})
    rel = 1e-2 if kind == "float16" else 1e-9
    assert_same(audited(table, S, Y), rel)
    if kind != "list_view":
        # Parquet has no list views.
        parquet.write_table(table, tmp_path / "t.parquet")
        assert_same(audited(dl.read_rows(tmp_path / "t.parquet"), S, Y), rel)


def test_columns_of_arrow(tmp_path: Path):
    table = pa.table(
        {
            "coded": pa.array([0.5, 0.5, 2.0]).dictionary_encode(),
            "decimal": pa.array([Decimal(n) for n in (1, 2, 3)], type=pa.decimal128(12, 2)),
        }
    )
    parquet.write_table(table, tmp_path / "t.parquet")
    rows = dl.read_rows(tmp_path / "t.parquet")
    assert rows.values.tolist() == [[0.5, 1], [0.5, 2], [2, 3]]
    parquet.write_table(pa.table({"z": [[1.0, None], [1.0, 2.0]]}), tmp_path / "n.parquet")
    with pytest.raises(DataError, match="1 empty cells in its lists"):
        dl.read_rows(tmp_path / "n.parquet")
    parquet.write_table(pa.table({"z": [[1.0], [1.0, 2.0]]}), tmp_path / "r.parquet")
    with pytest.raises(DataError, match="have 1 to 2 values"):
        dl.read_rows(tmp_path / "r.parquet")


# --- divergences and probabilities ---


@pytest.mark.parametrize("size", [1e-1, 1e-3, 1e-5, 1e-7])
def test_the_divergence_of_nearly_equal_logits(size: float):
    """A Taylor series: KL(p ‖ q) = ½ Var_p(δ) + O(δ³), also where terms of log p − log q cancel."""
    rng = np.random.default_rng(0)
    t = (3 * rng.normal(size=(N, C))).astype(np.float32)
    s = t.astype(np.float64) + size * rng.normal(size=t.shape)
    delta, p = s - t, scipy.special.softmax(t.astype(np.float64), axis=1)
    centred = delta - (p * delta).sum(axis=1, keepdims=True)
    wanted = 0.5 * (p * centred**2).sum(axis=1).mean()
    for pair in ((t, s), (s, t)):
        kl = audited(*pair, Y).fidelity.kl_teacher_student
        assert kl.value == pytest.approx(wanted, rel=1e-6 + size)
        assert kl.interval is not None
        assert kl.interval.low <= kl.value <= kl.interval.high


def test_divergences_agree_with_scipy_and_are_not_negative():
    rng = np.random.default_rng(0)
    p, q = (scipy.special.softmax(5 * rng.normal(size=(50, 7)), axis=1) for _ in range(2))
    p[:10, 0] = q[:10, 0] = 0
    q[10:15, 1] = 0
    p, q = p / p.sum(axis=1, keepdims=True), q / q.sum(axis=1, keepdims=True)
    q[20] = p[20]
    with np.errstate(divide="ignore"):
        found = differences(p, q, np.log(p), np.log(q))
    np.testing.assert_allclose(found[0], scipy.special.rel_entr(p, q).sum(axis=1), atol=1e-15)
    np.testing.assert_allclose(found[1], scipy.special.rel_entr(q, p).sum(axis=1), atol=1e-15)
    np.testing.assert_allclose(found[2], 0.5 * np.abs(p - q).sum(axis=1), rtol=1e-12)
    assert found[0][20] == found[1][20] == found[2][20] == 0
    assert all((each >= 0).all() for each in found)


def test_small_probabilities_are_not_cut():
    t, s = 12 * T, 15 * S
    by_logits = audited(t, s, Y)
    p, q = (scipy.special.softmax(z, axis=1) for z in (t, s))
    for kind, rel in ((np.float64, 1e-9), (np.float32, 1e-5)):
        found = audited(p.astype(kind), q.astype(kind), Y)
        for name in ("kl_teacher_student", "kl_student_teacher"):
            wanted = getattr(by_logits.fidelity, name).value
            assert getattr(found.fidelity, name).value == pytest.approx(wanted, rel=rel)
        wanted = by_logits.calibration[1].nll.value
        assert found.calibration[1].nll.value == pytest.approx(wanted, rel=rel)
        slope = by_logits.exaggeration.slope_all.ordinary.value
        assert found.exaggeration.slope_all.ordinary.value == pytest.approx(slope, rel=1e-4)
        assert found.exaggeration.clipped == 0


def test_a_probability_of_0_is_an_infinite_divergence_that_is_counted():
    q = Q.copy()
    rows = np.arange(0, N, 20)
    q[rows, Y[rows]] = 0
    q /= q.sum(axis=1, keepdims=True)
    found = audited(P, q, Y)
    fidelity, student = found.fidelity, found.calibration[1]
    assert fidelity.kl_teacher_student.value == np.inf
    assert np.isfinite(fidelity.kl_student_teacher.value)
    assert fidelity.infinite_kl_student_teacher is None
    others = np.setdiff1d(np.arange(N), rows)
    for infinite, values in (
        (fidelity.infinite_kl_teacher_student, scipy.special.rel_entr(P, Q).sum(axis=1)),
        (student.infinite_nll, -np.log(Q[np.arange(N), Y])),
    ):
        assert infinite is not None
        assert infinite.examples == len(rows)
        assert infinite.others.value == pytest.approx(values[others].mean())
        assert infinite.others.interval is not None


def test_rounded_probabilities_need_a_tolerance(tmp_path: Path, capsys):
    for name, values in (("t", P), ("s", Q), ("y", Y)):
        pd.DataFrame(values.round(2)).to_csv(tmp_path / f"{name}.csv")
    words = ["audit", "--teacher", tmp_path / "t.csv", "--student", tmp_path / "s.csv"]
    words += ["--labels", tmp_path / "y.csv", "--resamples", 100]
    line = refused(capsys, *words)
    assert "differs from one by 0.02" in line
    assert "--tolerance 0.021" in line
    assert command(*words, "--tolerance", 0.03) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "each row was divided by its sum" in shown
    assert "∞ at" in shown


def test_a_classifier_at_chance_is_said_first(tmp_path: Path, capsys):
    wrong = (Y + 1) % C
    for name, values in (("t", T), ("s", S), ("y", wrong)):
        np.save(tmp_path / f"{name}.npy", values)
    words = ["audit", "--teacher", tmp_path / "t.npy", "--student", tmp_path / "s.npy"]
    words += ["--labels", tmp_path / "y.npy", "--resamples", 100]
    assert command(*words) == 0
    assert capsys.readouterr().out.startswith("warning: the accuracy of the teacher")
    assert command(*words, "--json") == 0
    warnings = json.loads(capsys.readouterr().out)["warnings"]
    assert [warning[:27] for warning in warnings] == [
        "the accuracy of the teacher", "the accuracy of the student",
    ]  # fmt: skip
    assert dl.audit(T, S, Y, resamples=100).warnings == ()


# --- indices and names of several types ---


@pytest.mark.parametrize("first", [1000, 2**53, 2**63 + 5], ids=["small", "2**53", "2**63"])
def test_indices_of_other_types_are_matched_exactly(first: int, tmp_path: Path):
    """float64, in which NumPy compares uint64 with int64, cannot tell neighbours beyond 2**53."""
    ids = [first + 3 * i for i in range(N)]
    kinds: list[Any] = [np.uint64, str, np.int64 if first < 2**63 else str]
    reverse = slice(None, None, -1)
    rows = (
        dl.Rows(T, np.array(ids, kinds[0])),
        dl.Rows(S[reverse], np.array(ids, kinds[2])[reverse]),
    )
    assert_same(audited(*rows, dl.Rows(Y, np.array(ids, np.uint64))))
    assert_same(audited(*rows, dl.Rows(Y, np.array([f" {one} " for one in ids]))))
    if first < 2**53:
        assert_same(audited(*rows, dl.Rows(Y, np.array(ids, np.float32))))


def test_columns_numbered_in_another_order_are_matched_with_columns_without_names():
    """A table may have its columns in alphabetical order: 0, 1, 10, 2."""
    order = [0, 1, 4, 2, 3]
    for start in ("", "prob_", "z"):
        names = [f"{start}{i}" for i in range(C)]
        t, s = (z.set_axis(names, axis=1).iloc[:, order] for z in (D, E))
        for pair in ((t, S), (T, s), (t, s)):
            assert_same(audited(*pair, Y))


def test_labels_are_looked_up_behind_a_common_beginning():
    both = D.add_prefix("prob_"), E.add_prefix("prob_")
    assert_same(audited(*both, np.array(NAMES)[Y]))
    ids = [f"class{i}" for i in range(1, C + 1)]
    assert_same(audited(D.set_axis(ids, axis=1), E.set_axis(ids, axis=1), Y + 1))
    assert_same(audited(D.set_axis(ids, axis=1), E.set_axis(ids, axis=1), Y))


# --- more csv files ---

ALIGNED = "\n".join(" ".join(f"{value:25.17g}" for value in row) for row in T)
MORE_CSV = {
    "aligned with spaces": ALIGNED,
    "delimiter stated for Excel": "sep=,\n" + text(index=False),
    "delimiter and decimal commas for Excel": "sep=;\r\n" + text(sep=";", decimal=",", index=False),
}


@pytest.mark.parametrize("kind", MORE_CSV)
def test_more_csv_files_of_other_programs(kind: str, tmp_path: Path):
    (tmp_path / "t.csv").write_text(MORE_CSV[kind])
    np.testing.assert_array_equal(dl.read_rows(tmp_path / "t.csv").values, T)
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(MORE_CSV[kind].encode()))
    np.testing.assert_array_equal(dl.read_rows(tmp_path / "t.csv.gz").values, T)


def test_a_title_above_the_header_is_named(tmp_path: Path):
    (tmp_path / "t.csv").write_text("Predictions\n" + text(index=False))
    with pytest.raises(DataError, match="1 cells in its first line, 'Predictions', and 5 below"):
        dl.read_rows(tmp_path / "t.csv")


def test_ids_of_64_bits_in_csv_files_identify_rows(tmp_path: Path):
    """Arrow reads numbers beyond int64 as float64, in which all of these are equal."""
    ids = [2**64 - 1 - i for i in range(N)]
    D.assign(id=ids).to_csv(tmp_path / "t.csv", index=False)
    E.assign(id=ids)[::-1].to_csv(tmp_path / "s.csv", index=False)
    pd.DataFrame({"id": ids, "label": Y}).to_csv(tmp_path / "y.csv", index=False)
    assert_same(audited(*(dl.read_rows(tmp_path / f"{name}.csv") for name in "tsy")))


def test_an_equals_sign_in_the_name_of_a_file_names_no_split(tmp_path: Path, monkeypatch: Any):
    monkeypatch.chdir(tmp_path)
    np.save("lr=0.1.npy", T)
    for places, found in ((["lr=0.1.npy"], None), (["test=lr=0.1.npy"], "test")):
        rows: Any = read_splits(places)
        np.testing.assert_array_equal((rows if found is None else rows[found]).values, T)


def test_matrices_are_arrays():
    assert_same(audited(np.asmatrix(T), np.asmatrix(S), np.asmatrix(Y).T))
