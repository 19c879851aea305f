"""Laws of the audit: known answers, planted counts, oracles of scikit-learn and SciPy, chunks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss

import distillens as dl
from distillens.errors import MeasureError
from distillens.measures import phi_from_logits
from distillens.measures.confidence import audit_with_points
from distillens.measures.confidence import per_example as single_pass
from distillens.measures.confidence.departures import mcnemar_exact, net_gain
from distillens.results.base import from_json, to_json
from distillens.results.confidence import Agreement, Audit, SplitAudit

N, C = 600, 4


def made(examples: int = N, classes: int = C, seed: int = 0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=examples)
    teacher = 2 * rng.normal(size=(examples, classes))
    teacher[np.arange(examples), labels] += 2
    student = 1.5 * teacher + rng.normal(size=(examples, classes))
    return teacher.astype(np.float32), student.astype(np.float32), labels


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z.astype(np.float64) - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def one(*arrays, **more) -> SplitAudit:
    more.setdefault("resamples", 200)
    (split,) = dl.audit(*arrays, **more).splits
    return split


# --- students with a known answer ---


@pytest.mark.parametrize("as_probabilities", [False, True])
def test_the_teacher_itself(as_probabilities: bool):
    teacher, _, labels = made()
    outputs = softmax(teacher) if as_probabilities else teacher
    found = one(outputs, outputs.copy(), labels)
    shown = found.exaggeration
    for part in (shown.slope_all, shown.slope_low, shown.slope_high):
        assert part.ordinary.value == part.robust.value == 1.0
        assert part.ordinary.interval is not None
        assert part.ordinary.interval.low == pytest.approx(1, abs=1e-9)
        assert part.ordinary.interval.high == pytest.approx(1, abs=1e-9)
    assert shown.verdict == "not here"
    assert shown.underfit.share.value == 0
    assert found.ledger.departures == 0
    assert found.ledger.telling == ()
    assert found.ledger.all.p_value == 1
    assert found.fidelity.identical
    assert found.fidelity.agreement.value == 1
    assert found.fidelity.kl_teacher_student.value == found.fidelity.total_variation.value == 0


@pytest.mark.parametrize("outputs", [1, 2])
def test_twice_the_logits_of_two_classes_is_slope_two(outputs: int):
    rng = np.random.default_rng(0)
    teacher, labels = rng.normal(size=(400, outputs)), rng.integers(2, size=400)
    # Numbers that leave [0, 1] can be detected as logits even where there is one output.
    shown = one(teacher, 2 * teacher, labels).exaggeration
    for part in (shown.slope_all, shown.slope_low, shown.slope_high):
        assert part.ordinary.value == pytest.approx(2, abs=1e-12)
        assert part.robust.value == pytest.approx(2, abs=1e-12)
        assert part.verdict == "yes"
    assert shown.verdict == "yes"
    assert "No reference was given" in shown.reading


def test_the_low_part_can_underfit_while_the_whole_slope_does_not_show_it():
    x = np.linspace(0.1, 6, 400)
    y = np.where(x < np.median(x), x - 0.3, x)
    zeros = np.zeros_like(x)
    shown = one(
        np.stack([x, zeros], 1), np.stack([y, zeros], 1), np.arange(400) % 2, kind="logits"
    ).exaggeration
    assert shown.slope_low.verdict == "not here"
    assert shown.underfit.share.value == 1
    assert shown.underfit.verdict == "yes"


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_a_student_that_is_less_sure_of_everything_does_not_exaggerate(noise: float):
    rng = np.random.default_rng(4)
    x = rng.uniform(1, 6, size=600)
    y = 0.3 * x + noise * rng.normal(size=600)
    zeros = np.zeros_like(x)
    shown = one(
        np.stack([x, zeros], 1), np.stack([y, zeros], 1), rng.integers(2, size=600), kind="logits"
    ).exaggeration
    assert shown.underfit.share.value > 0.85
    assert shown.underfit.beyond_high is not None
    assert shown.underfit.beyond_high.value == pytest.approx(0, abs=0.15)
    assert shown.underfit.verdict == shown.verdict == "less sure throughout"
    assert "no more so where the teacher is unsure" in shown.reading


def test_a_planted_five_percent_moves_the_robust_slope_least():
    rng = np.random.default_rng(3)
    x = rng.uniform(0.2, 6, size=1000)
    planted = rng.permutation(1000) < 50
    # Points that lie far below the line at high x: the mislabelled ones, say.
    y = np.where(planted, -2 * x, 1.2 * x)
    zeros = np.zeros_like(x)
    arrays = np.stack([x, zeros], 1), np.stack([y, zeros], 1), rng.integers(2, size=1000)
    shown = one(*arrays, mislabelled=planted, kind="logits").exaggeration
    assert shown.slope_all.robust.value == pytest.approx(1.2, abs=1e-3)
    assert shown.slope_all.ordinary.value < 1.15
    place = shown.mislabelled
    assert place is not None
    assert place.examples == 50
    assert place.underfit_share.value == 1
    assert place.underfit_share_of_others.value == 0
    assert place.more_underfit.value == 1


def test_truth_values_are_labels_of_two_classes_only():
    teacher, student, labels = made(examples=100)
    with pytest.raises(MeasureError, match="type bool; give integers"):
        one(teacher, student, labels > 1)
    two = teacher[:, :2], student[:, :2], labels > 1
    assert one(*two) == one(*two[:2], two[2].astype(int))


def test_an_audit_of_few_examples_says_so():
    shown = one(*made(examples=20)).exaggeration
    assert shown.verdict == "too few examples"
    assert shown.slope_low.verdict == "too few examples"


def test_a_reference_as_steep_as_the_student_takes_the_yes_away():
    teacher, student, labels = made(examples=2000)
    rng = np.random.default_rng(5)
    alike = (1.5 * teacher + rng.normal(size=teacher.shape)).astype(np.float32)
    flat = (0.5 * teacher + rng.normal(size=teacher.shape)).astype(np.float32)
    alone = one(teacher, student, labels).exaggeration.slope_all
    assert alone.verdict == "yes"
    assert one(teacher, student, labels, reference=flat).exaggeration.slope_all.verdict == "yes"
    both = one(teacher, student, labels, reference=flat, other_teacher=alike)
    shown = both.exaggeration.slope_all
    assert shown.verdict == "no more than a reference"
    assert [one.name for one in shown.references] == ["one-hot student", "other teacher"]
    for reference in shown.references:
        steeper = shown.ordinary.value - reference.ordinary.value
        assert reference.steeper.value == pytest.approx(steeper)


# --- fidelity and calibration ---


def test_fidelity_is_what_its_formulas_say():
    teacher, student, labels = made()
    p, q = softmax(teacher), softmax(student)
    found = one(teacher, student, labels).fidelity
    assert found.kl_teacher_student.value == pytest.approx(
        np.mean(np.sum(p * np.log(p / q), axis=1)), rel=1e-4
    )
    assert found.kl_student_teacher.value == pytest.approx(
        np.mean(np.sum(q * np.log(q / p), axis=1)), rel=1e-4
    )
    assert found.total_variation.value == pytest.approx(np.abs(p - q).sum(1).mean() / 2, rel=1e-5)
    assert found.agreement.value == np.mean(p.argmax(1) == q.argmax(1))
    assert not found.identical


def test_calibration_agrees_with_scikit_learn():
    teacher, student, labels = made()
    found = one(teacher, student, labels)
    for outputs, shown in zip((teacher, student), found.calibration, strict=True):
        p = softmax(outputs)
        right = p.argmax(1) == labels
        accuracy, confidence = calibration_curve(right, p.max(axis=1), n_bins=15)
        np.testing.assert_allclose([b.accuracy.value for b in shown.reliability], accuracy)
        np.testing.assert_allclose([b.confidence for b in shown.reliability], confidence, rtol=1e-5)
        share = np.array([b.examples for b in shown.reliability]) / N
        assert shown.ece == pytest.approx(float(share @ np.abs(accuracy - confidence)), abs=1e-6)
        # Bins of equal size: the unweighted mean.
        accuracy, confidence = calibration_curve(
            right, p.max(axis=1), n_bins=15, strategy="quantile"
        )
        wanted = float(np.mean(np.abs(accuracy - confidence)))
        assert shown.adaptive_ece == pytest.approx(wanted, abs=1e-6)
        assert shown.nll.value == pytest.approx(log_loss(labels, p), rel=1e-5)
        brier = np.mean(np.sum((p - np.eye(C)[labels]) ** 2, axis=1))
        assert shown.brier.value == pytest.approx(brier, rel=1e-5)
        assert shown.accuracy.value == right.mean()


def test_a_calibrated_classifier_lies_where_it_should():
    rng = np.random.default_rng(0)
    teacher = 2 * rng.normal(size=(20_000, 5)).astype(np.float32)
    p = softmax(teacher)
    labels = (p.cumsum(axis=1) < rng.random((20_000, 1))).sum(axis=1).clip(max=4)
    calibrated, sharper = one(teacher, 2 * teacher, labels).calibration
    assert calibrated.ece < 0.02
    assert calibrated.ece_if_calibrated.low <= calibrated.ece <= calibrated.ece_if_calibrated.high
    limits = calibrated.adaptive_ece_if_calibrated
    assert limits.low <= calibrated.adaptive_ece <= limits.high
    assert sharper.ece > 0.05 > sharper.ece_if_calibrated.high
    assert sharper.nll.value > calibrated.nll.value


# --- the ledger ---


def planted():
    labels = np.arange(200) % 2
    # 0 obeys and right, 1 gained, 2 lost, 3 both wrong and apart, 4 obeys and wrong.
    outcome = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 3, 4], [90, 20, 10, 30, 50]))
    wrong, other_wrong = 2, 3
    teacher = np.where(np.isin(outcome, [0, 2]), labels, wrong)
    student = np.where(np.isin(outcome, [0, 1]), labels, wrong)
    student[outcome == 3] = other_wrong
    sure = np.random.default_rng(1).uniform(2, 4, size=(200, 1))
    return sure * np.eye(4)[teacher], sure * np.eye(4)[student], labels, outcome


def test_planted_departures_are_counted():
    teacher, student, labels, outcome = planted()
    mislabelled = (outcome == 1).astype(int)
    ledger = one(teacher, student, labels, mislabelled=mislabelled).ledger
    assert ledger.departures == 60
    assert (ledger.all.gained, ledger.all.lost, ledger.all.both_wrong) == (20, 10, 30)
    assert ledger.all.net_gain.value == pytest.approx(100 * 10 / 200)
    assert ledger.right == Agreement(both=90, only_student=20, only_teacher=10, neither=80)
    for entries in (ledger.by_class, ledger.by_confidence, ledger.by_mislabelled):
        assert sum(entry.examples for entry in entries) == 200
        assert sum(entry.gained for entry in entries) == 20
        assert sum(entry.departures for entry in entries) == 60
    for entry in ledger.by_class:
        own = outcome[labels == int(entry.group.removeprefix("class "))]
        assert entry.lost == np.count_nonzero(own == 2)
    assert [entry.gained for entry in ledger.by_mislabelled] == [0, 20]


@pytest.mark.parametrize(
    ("gained", "lost"), [(0, 0), (1, 0), (20, 10), (3, 30), (7, 7), (900, 1000)]
)
def test_mcnemar_is_the_exact_binomial_test(gained: int, lost: int):
    wanted = binomtest(gained, gained + lost, 0.5).pvalue if gained + lost else 1.0
    assert mcnemar_exact(gained, lost) == pytest.approx(wanted, rel=1e-9)


def test_the_most_telling_example_comes_first():
    teacher, student, labels = made()
    teacher[17] = np.eye(C)[0] * 12
    student[17] = np.eye(C)[1] * 12
    labels[17] = 1
    texts = np.array([f"sentence {i}" for i in range(N)])
    index = np.arange(N) + 1000
    rows = dl.Rows(teacher, index)
    first, *rest = one(rows, student, labels, inputs=texts, telling=3).ledger.telling
    assert (first.row, first.index, first.text, first.outcome) == (
        17, 1017, "sentence 17", "gained",
    )  # fmt: skip
    assert (first.label, first.teacher_class, first.student_class) == (1, 0, 1)
    assert first.moved == pytest.approx(2, abs=1e-3)
    assert len(rest) <= 8
    assert [example.moved for example in rest] == sorted(
        (example.moved for example in rest), reverse=True
    )


# --- reading ---


def test_probabilities_say_what_logits_say():
    teacher, student, labels = made()
    by_logits = one(teacher, student, labels)
    by_p = one(softmax(teacher), softmax(student), labels)
    for shown in ("ordinary", "robust"):
        assert getattr(by_p.exaggeration.slope_all, shown).value == pytest.approx(
            getattr(by_logits.exaggeration.slope_all, shown).value, abs=1e-3
        )
    assert by_p.ledger.all == by_logits.ledger.all
    assert by_p.fidelity.kl_teacher_student.value == pytest.approx(
        by_logits.fidelity.kl_teacher_student.value, rel=1e-3
    )


def test_the_kind_is_stated_or_detected_and_said():
    teacher, student, labels = made()
    kinds = dl.audit(teacher, softmax(student), labels, resamples=100).kinds
    assert [read.kind for read in kinds] == ["logits", "probabilities"]
    assert kinds[0].how.startswith("detected: the rows go from")
    assert "sum to one" in kinds[1].how
    stated = dl.audit(softmax(teacher), student, labels, resamples=100, kind="logits")
    assert {read.how for read in stated.kinds} == {"stated"}
    assert "stated to be logits, but" in stated.splits[0].notes[0]


def test_phi_does_not_saturate_in_float32():
    teacher = np.array([[900.0, 100, 0], [0, 300, -300]] * 2, dtype=np.float32)
    labels = [0, 1, 0, 1]
    roles = {"teacher": teacher, "student": 2 * teacher, "labels": labels}
    _, points = audit_with_points(roles, resamples=100)
    np.testing.assert_allclose(points["all"].x_N, [800, 300] * 2, rtol=1e-6)
    np.testing.assert_allclose(points["all"].y_N, [1600, 600] * 2, rtol=1e-6)


def test_points_are_those_of_the_deviation_plot():
    teacher, student, labels = made()
    roles = {"teacher": teacher, "student": student, "labels": labels}
    _, points = audit_with_points(roles, resamples=100)
    _, wanted = dl.deviation(teacher, student, labels, student="s", seed=0, split="test")
    np.testing.assert_allclose(points["all"].x_N, wanted.x_N, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(points["all"].y_N, wanted.y_N, rtol=2e-5, atol=2e-5)
    np.testing.assert_array_equal(points["all"].who_N, wanted.who_N)
    k = teacher.argmax(axis=1)
    np.testing.assert_allclose(phi_from_logits(student, k), points["all"].y_N, rtol=2e-5, atol=2e-5)


def test_chunks_and_memory_maps_change_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    arrays = made()
    whole = one(*arrays)
    maps = []
    for name, array in zip(("teacher", "student"), arrays[:2], strict=True):
        np.save(tmp_path / f"{name}.npy", array)
        maps.append(np.load(tmp_path / f"{name}.npy", mmap_mode="r"))
    monkeypatch.setattr(single_pass, "_CHUNK_NUMBERS", 7 * C)
    # Pages are handed back after every chunk, so that handing back is tested too.
    monkeypatch.setattr(single_pass, "_RELEASE_EVERY", 1)
    assert one(*maps, arrays[2]) == whole


def test_splits_are_audited_apart():
    teacher, student, labels = made()
    names = {"train": slice(0, 400), "test": slice(400, N)}
    found = dl.audit(
        *({name: array[rows] for name, rows in names.items()} for array in made()), resamples=100
    )
    assert [(split.split, split.examples) for split in found.splits] == [
        ("train", 400), ("test", 200),
    ]  # fmt: skip
    alone = one(teacher[400:], student[400:], labels[400:], resamples=100)
    assert found.splits[1].ledger == alone.ledger


def test_json_and_back():
    teacher, student, labels = made()
    found = dl.audit(
        teacher, student, labels, reference=student, mislabelled=labels == 0, resamples=100
    )
    assert from_json(Audit, to_json(found), "audit.json") == found


def test_no_framework_is_loaded():
    code = (
        "import sys, numpy as np, distillens as dl, distillens.cli\n"
        "rng = np.random.default_rng(0)\n"
        "dl.audit(rng.normal(size=(50, 3)), rng.normal(size=(50, 3)), rng.integers(3, size=50))\n"
        "loaded = {'torch', 'tensorflow', 'jax', 'accelerate', 'datasets'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_net_gain_without_departures_still_has_an_interval():
    gain = net_gain(0, 0, 1000)
    assert gain.value == 0
    assert gain.interval is not None
    assert -0.3 < gain.interval.low < 0 < gain.interval.high < 0.3
