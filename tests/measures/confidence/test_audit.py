"""Laws of the audit: known answers, planted counts, oracles of scikit-learn and SciPy, chunks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss

import distillens as dl
from distillens.errors import DistillensError, MeasureError
from distillens.measures import phi_from_logits
from distillens.measures.confidence import audit_with_points
from distillens.measures.confidence.departures import mcnemar_exact, net_gain
from distillens.measures.confidence.log_odds import Points
from distillens.measures.confidence.outputs import Outputs
from distillens.measures.confidence.per_example_statistics import per_example_statistics
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


def plotted(*arrays: Any, **more: Any) -> tuple[SplitAudit, Points]:
    given: dict[str, Any] = dict(zip(("teacher", "student", "labels"), arrays, strict=True))
    more.setdefault("resamples", 100)
    audit, points = audit_with_points(given, **more)
    return audit.splits[0], points["all"]


def margins(x, y) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return logits of two classes with log-odds x and y of the first class, and labels."""
    zeros = np.zeros_like(x)
    return np.stack([x, zeros], 1), np.stack([y, zeros], 1), np.arange(len(x)) % 2


# --- log-odds ---


def test_phi_is_the_logit_of_the_probability():
    logits = np.random.default_rng(0).normal(size=(20, 5))
    p = softmax(logits)
    k = np.arange(20) % 5
    wanted = np.log(p[np.arange(20), k] / (1 - p[np.arange(20), k]))
    np.testing.assert_allclose(phi_from_logits(logits, k), wanted, rtol=1e-9)


def test_phi_of_logits_does_not_saturate_or_overflow():
    np.testing.assert_array_equal(
        phi_from_logits([[900.0, 100.0], [0.0, 1e4]], [0, 0]), [800, -1e4]
    )
    # One output: z for class 1, -z for class 0.
    np.testing.assert_array_equal(phi_from_logits([[50.0], [50.0]], [1, 0]), [50, -50])


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
    assert shown.verdict == "no"
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


def test_a_student_with_half_the_log_odds_is_less_confident_everywhere():
    teacher = np.random.default_rng(0).normal(size=(200, 2))
    shown = one(teacher, 0.5 * teacher, np.arange(200) % 2).exaggeration
    assert shown.slope_all.ordinary.value == pytest.approx(0.5, abs=1e-12)
    assert shown.underfit.share.value == 1.0
    interval = shown.underfit.share.interval
    assert interval is not None
    assert 0.9 < interval.low < 1
    assert "Wilson over 100" in interval.method


def test_low_and_high_slopes_are_of_their_parts():
    x = np.linspace(1, 5, 101)
    shown = one(*margins(x, np.where(x < 3, 2 * x, 6 + 0.5 * (x - 3)))).exaggeration
    assert shown.threshold == pytest.approx(3)
    assert shown.slope_low.ordinary.value == pytest.approx(2)
    assert shown.slope_high.ordinary.value == pytest.approx(0.5)
    assert 0.5 < shown.slope_all.ordinary.value < 2


def test_one_output_is_two_classes():
    rng = np.random.default_rng(0)
    g, f, labels = rng.normal(size=(80, 1)), rng.normal(size=(80, 1)), rng.integers(2, size=80)
    pair = [np.concatenate([np.zeros((80, 1)), z], axis=1) for z in (g, f)]
    assert one(g, f, labels) == one(pair[0], pair[1], labels) == one(g, pair[1], labels)
    # One probability is that of class 1.
    found, points = plotted([[0.9], [0.2]], [[0.6], [0.6]], [1, 0], kind="probabilities")
    np.testing.assert_allclose(points.x_N, [np.log(9), np.log(4)])
    np.testing.assert_allclose(points.y_N, [np.log(1.5), -np.log(1.5)])
    assert found.ledger.right == Agreement(1, 0, 1, 0)


def test_an_equally_confident_teacher_has_no_slope():
    found = one(np.tile([2.0, 0.0], (30, 1)), 2 * np.eye(2)[np.zeros(30, int)], np.arange(30) % 2)
    shown = found.exaggeration
    for part in (shown.slope_all, shown.slope_low, shown.slope_high):
        assert np.isnan(part.ordinary.value)
        assert part.ordinary.interval is None
    assert np.isnan(shown.underfit.share.value)
    assert any("30 points of the all part (all at x = 2)" in note for note in found.notes)
    assert any("0 points of the low part (fewer than 10)" in note for note in found.notes)


def test_fewer_than_ten_points_have_no_slope():
    found = one(*made(examples=15))
    shown = found.exaggeration
    assert shown.slope_all.ordinary.interval is not None
    assert np.isnan(shown.slope_low.ordinary.value)
    assert shown.slope_low.ordinary.interval is None
    assert len(found.notes) == 2


def test_one_point_that_differs_gives_no_interval():
    x = np.r_[np.ones(30), 2.0]
    fit = one(*margins(x, x), kind="logits").exaggeration.slope_all
    assert fit.ordinary.value == 1
    assert fit.ordinary.interval is None


def test_the_order_of_examples_does_not_matter():
    arrays = made()
    order = np.random.default_rng(1).permutation(N)
    first, second = one(*arrays), one(*(array[order] for array in arrays))
    for split in (first, second):
        assert split.ledger.right == first.ledger.right
        slope = first.exaggeration.slope_low.robust.value
        assert split.exaggeration.slope_low.robust.value == pytest.approx(slope)


def test_predictions_are_judged_by_true_labels_and_accuracy_also_by_given_ones():
    teacher, student, labels = made()
    changed = np.random.default_rng(2).permutation(N) < 90
    given = np.where(changed, (labels + 1) % C, labels)
    found = one(teacher, student, labels, given_labels=given)
    for shown, outputs in zip(found.calibration, (teacher, student), strict=True):
        assert shown.accuracy.value == np.mean(outputs.argmax(1) == labels)
        assert shown.accuracy_on_given_labels is not None
        assert shown.accuracy_on_given_labels.value == np.mean(outputs.argmax(1) == given)
    masked = one(teacher, student, labels, mislabelled=changed)
    assert found.ledger == masked.ledger
    assert found.exaggeration == masked.exaggeration
    assert masked.calibration[0].accuracy_on_given_labels is None
    same = one(teacher, student, labels, given_labels=labels)
    assert same.calibration[1].accuracy_on_given_labels is None


def test_the_low_part_can_underfit_while_the_whole_slope_does_not_show_it():
    x = np.linspace(0.1, 6, 400)
    y = np.where(x < np.median(x), x - 0.3, x)
    zeros = np.zeros_like(x)
    shown = one(
        np.stack([x, zeros], 1), np.stack([y, zeros], 1), np.arange(400) % 2, kind="logits"
    ).exaggeration
    assert shown.slope_low.verdict == "no"
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
    assert shown.underfit.verdict == shown.verdict == "less confident throughout"
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


def test_kl_known_value_in_nats():
    teacher, student = np.log([[0.5, 0.5]] * 12), np.log([[0.9, 0.1]] * 12)
    wanted = 0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1)
    # Softmax does not see a constant added to all logits.
    for shift in (0, 300):
        found = one(teacher + shift, student - shift, np.arange(12) % 2, kind="logits").fidelity
        assert found.kl_teacher_student.value == pytest.approx(wanted)


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


def test_the_most_informative_departure_comes_first():
    teacher, student, labels = made()
    teacher[17] = np.eye(C)[0] * 12
    student[17] = np.eye(C)[1] * 12
    labels[17] = 1
    texts = np.array([f"sentence {i}" for i in range(N)])
    index = np.arange(N) + 1000
    rows = dl.Rows(teacher, index)
    first, *rest = one(rows, student, labels, inputs=texts, listed_departures=3).ledger.telling
    assert (first.row, first.index, first.text, first.outcome) == (
        17, 1017, "sentence 17", "gained",
    )  # fmt: skip
    assert (first.label, first.teacher_class, first.student_class) == (1, 0, 1)
    assert first.moved == pytest.approx(2, abs=1e-3)
    assert len(rest) <= 8
    assert [example.moved for example in rest] == sorted(
        (example.moved for example in rest), reverse=True
    )


# --- names of earlier versions ---


@pytest.mark.parametrize("module", [dl, dl.measures])
def test_a_removed_name_names_its_replacement(module):
    name = "deviation"
    assert not hasattr(module, name)
    assert name not in dir(module)
    with pytest.raises(DistillensError, match=r"deviation was removed; use distillens\.audit$"):
        getattr(module, name)
    with pytest.raises(AttributeError, match="no_such_name"):
        getattr(module, f"no_such_{'name'}")


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


def test_slopes_are_of_y_on_x_of_the_teacher_s_class():
    teacher, student, labels = made()
    found, points = plotted(teacher, student, labels)
    k = teacher.argmax(axis=1)
    x, y = phi_from_logits(teacher, k), phi_from_logits(student, k)
    np.testing.assert_allclose(points.x_N, x, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(points.y_N, y, rtol=2e-5, atol=2e-5)
    shown = found.exaggeration
    low = x < np.median(x)
    for part, fit in (
        (low | ~low, shown.slope_all),
        (low, shown.slope_low),
        (~low, shown.slope_high),
    ):
        assert fit.ordinary.value == pytest.approx(np.polyfit(x[part], y[part], 1)[0], rel=1e-4)
    assert shown.underfit.share.value == np.mean(y[low] < x[low])
    teacher_right, student_right = k == labels, student.argmax(axis=1) == labels
    who = np.where(student_right, 0, 2) + np.where(teacher_right, 0, 1)
    np.testing.assert_array_equal(points.who_N, who)


def test_chunks_and_memory_maps_change_nothing(tmp_path: Path):
    arrays = made()
    maps = []
    for name, array in zip(("teacher", "student"), arrays[:2], strict=True):
        np.save(tmp_path / f"{name}.npy", array)
        maps.append(np.load(tmp_path / f"{name}.npy", mmap_mode="r"))
    outputs = [Outputs("teacher", array, "logits") for array in (*arrays[:2], *maps)]
    whole = per_example_statistics(outputs[0], outputs[1], arrays[2], {})
    # Pages are released after every chunk, so that releasing is tested too.
    parts = per_example_statistics(
        outputs[2], outputs[3], arrays[2], {}, chunk_values=7 * C, release_every=1
    )
    for name in ("x_N", "y_N", "kl_teacher_student_N", "total_variation_N"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))
    np.testing.assert_array_equal(parts.who_is_right(), whole.who_is_right())


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
