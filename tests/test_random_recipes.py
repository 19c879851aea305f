"""Any recipe runs, or is refused with one clear line; no traceback reaches a user."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import distillens
from distillens.errors import DistillensError

# Mostly what a careful user writes, now and then what a careless one does.
number = st.sampled_from([0, 1, 2, 0.5, 4, -1, 1e-3, 1e30, float("nan"), float("inf"), "x", None])
share = st.sampled_from([0, 0.1, 0.5, 1, 1.5, -0.1, None, "a"])
temperature = st.one_of(
    st.sampled_from([1, 2.5, 4, 20]),
    number,
    st.fixed_dictionaries({"start": number, "end": number}),
)


def sometimes(good: Any, other: st.SearchStrategy[Any], odds: int = 12) -> st.SearchStrategy[Any]:
    """A good value, and once in so many draws something else."""
    return st.integers(0, odds).flatmap(lambda k: other if k == 0 else st.just(good))


def optional(**keys: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=keys)


taught = {
    "temperature": temperature,
    "alpha": st.one_of(st.sampled_from([0, 0.3, 1]), share),
    "loss": st.one_of(
        st.none(),
        st.sampled_from([{"name": "dkd"}, {"name": "dist"}, {"name": "kd"}, {"name": "os:system"}]),
    ),
    "seeds": st.sampled_from([[0], [1], []]),
}
average = st.sampled_from([None, {"last": 2}, {"decay": 0.5}, {"last": 0}, {"decay": 1}, {}])
simple = st.one_of(
    optional(smoothing=share).map(lambda d: {"kind": "one-hot", **d}),
    optional(
        **taught, average=average, early_stop=st.sampled_from([1, 2, 9, "validation", "best"])
    ).map(lambda d: {"kind": "offline", **d}),
    optional(
        **taught,
        average=average,
        pace=st.sampled_from([1, 2, 0.5, 0, [[0, 0], [1, 1]], [[0, 1], [1, 0]], "fast"]),
        period=st.sampled_from([{"epochs": 1}, {"epochs": 2}, {"steps": 2}, {"steps": 3}, {}]),
    ).map(lambda d: {"kind": "online", **d}),
    optional(**taught).map(lambda d: {"kind": "co-trained", **d}),
)
entry = st.one_of(
    simple,
    optional(**taught, generations=st.sampled_from([1, 2, 0])).map(
        lambda d: {"kind": "self-distillation", **d}
    ),
    st.fixed_dictionaries(
        {
            "first": simple,
            "then": simple,
            "at": st.sampled_from([0.5, 0.25, 0, 1]),
            "window": st.sampled_from([0, 1, 5, -1]),
        }
    ).map(lambda d: {"kind": "switched", **d}),
    st.sampled_from([{"kind": "ofline"}, {}, {"kind": "one-hot", "tau": 1}]),
)
model = st.one_of(
    st.just({"name": "mlp", "hidden": [4]}),
    st.sampled_from(
        [
            {"name": "mlp", "hidden": []},
            {"name": "mlp", "hidden": [0]},
            {"name": "mlp", "hidden": "x"},
            {"name": "mlp", "depth": 3},
            {"name": "resnet9"},
            {"name": "lenet5", "width": 1},
            {"name": "a:b"},
            {"name": "timm:nothing"},
        ]
    ),
)
training = st.fixed_dictionaries(
    {
        "epochs": sometimes(1, number),
        "batch_size": sometimes(8, number),
        "learning_rate": sometimes(0.05, number),
    },
    optional={
        "accumulate": sometimes(2, number),
        "weight_decay": sometimes(1e-3, number),
        "schedule": st.sampled_from(
            [{"kind": "cosine"}, {"warmup": 1}, {"milestones": [0.5, 0.4]}, {"kind": "line"}]
        ),
    },
)
data = st.fixed_dictionaries(
    {
        "source": sometimes("digits", st.sampled_from(["idx", "npz", "folder", "csv"])),
        "train_size": sometimes(16, number),
        "test_size": sometimes(20, number),
    },
    optional={
        "validation_size": sometimes(10, number),
        "label_noise": sometimes(0.2, share),
        "groups": st.sampled_from([None, [[0, 1], [2, 3]], [[0], [0]], [[0], [99]], [[1]]]),
        "augmentation": st.sampled_from([{"crop": 1}, {"flip": True}, {"crop": -1}, {"cut": 1}]),
    },
)
recipes = st.fixed_dictionaries(
    {
        "name": sometimes("any", st.sampled_from(["", "../../x", "a" * 200, None])),
        "data": data,
        "teacher": st.one_of(
            st.fixed_dictionaries({"model": model, "training": training}),
            st.sampled_from([{}, {"run": "/nowhere"}, {"checkpoint": "a.pt"}, {"logits": "a.npz"}]),
        ),
        "student": st.fixed_dictionaries({"model": model, "training": training}),
        "supervisions": st.lists(entry, min_size=0, max_size=3),
        "deviation": st.booleans(),
        "complexity": st.sampled_from(
            [None, {"examples": 6, "random_draws": 1}, {"examples": 1}, {"split": "all"}]
        ),
    },
    optional={
        "seeds": st.sampled_from([[0], [0, 1], [], [0, 0], "0"]),
        "loss": st.sampled_from(["cross-entropy", "squared-error", "hinge"]),
        "cache_gigabytes": st.sampled_from([1, 1e-9]),
        "colour": st.just(1),
    },
)


@pytest.mark.slow
@settings(
    max_examples=10_000,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(recipe=recipes)
def test_a_recipe_runs_or_is_refused_in_one_line(recipe: dict[str, Any]) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        result = distillens.run(recipe, folder / "run")
        assert result.rows
        assert not result.open_cells
    except DistillensError as error:
        line = str(error)
        assert line
        assert "\n" not in line
        assert len(line) < 600
    finally:
        shutil.rmtree(folder)
