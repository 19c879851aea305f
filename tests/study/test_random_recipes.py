"""Any recipe runs, or is refused with one clear line; no traceback reaches a user."""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import distillens
from distillens.errors import DistillensError

Draw = st.DrawFn


def some(**keys: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A mapping with any of these keys."""
    return st.fixed_dictionaries({}, optional=keys)


def of(kind: str, **keys: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return some(**keys).map(lambda values: {"kind": kind, **values})


TAUGHT = {
    "temperature": st.sampled_from([1, 2.5, 4, 20, {"start": 8, "end": 1}]),
    "alpha": st.sampled_from([0, 0.3, 1]),
}
# Only for losses that are defined for two classes and more outputs.
NAMED = {"loss": st.sampled_from([{"name": "dkd"}, {"name": "dist", "weights": [1, 2]}])}
AVERAGE = st.sampled_from([{"last": 2}, {"decay": 0.5}])
SIMPLE = st.one_of(
    of("one-hot", smoothing=st.sampled_from([0, 0.1, 1])),
    of(
        "offline",
        **TAUGHT,
        **NAMED,
        average=AVERAGE,
        early_stop=st.sampled_from([1, 2, "validation"]),
    ),
    of(
        "online",
        **TAUGHT,
        average=AVERAGE,
        pace=st.sampled_from([1, 2, 0.5, [[0, 0], [0.5, 0.75], [1, 1]]]),
        period=st.sampled_from([{"epochs": 1}, {"epochs": 2}, {"steps": 2}]),
    ),
    of("co-trained", **TAUGHT),
)
ENTRY = st.one_of(
    SIMPLE,
    SIMPLE,
    of("self-distillation", **TAUGHT, generations=st.sampled_from([1, 2])),
    st.builds(
        lambda first, then, at, window: {
            "kind": "switched",
            "first": first,
            "then": then,
            "at": at,
            "window": window,
        },
        SIMPLE,
        SIMPLE,
        st.sampled_from([0.25, 0.5]),
        st.sampled_from([0, 1, 5]),
    ),
)
TRAINED = st.builds(
    lambda entry, own: {**entry, **own},
    ENTRY,
    some(
        training=st.sampled_from(
            [{"learning_rate": 0.2}, {"epochs": 2, "schedule": {"kind": "cosine"}}]
        )
    ),
)


def training(epochs: int) -> st.SearchStrategy[dict[str, Any]]:
    return some(
        accumulate=st.sampled_from([1, 2, 3]),
        weight_decay=st.just(1e-3),
        momentum=st.sampled_from([0, 0.9]),
        schedule=st.sampled_from([{"kind": "cosine"}, {"warmup": 1}, {"kind": "constant"}]),
    ).map(lambda values: {"epochs": epochs, "batch_size": 8, "learning_rate": 0.05, **values})


DATA = some(
    validation_size=st.just(10),
    label_noise=st.sampled_from([0, 0.3]),
    groups=st.sampled_from([[[0, 1], [2, 3]], [[0, 1, 2], [3, 4], [5, 6, 7]]]),
    augmentation=st.sampled_from([{"crop": 1}, {"flip": True}]),
).map(lambda values: {"source": "digits", "train_size": 16, "test_size": 20, **values})
MODEL = st.sampled_from([{"name": "mlp", "hidden": [4]}, {"name": "mlp", "hidden": []}])

SOUND = st.builds(
    lambda data, teacher, student, model, entries, rest: {
        "name": "any",
        "data": data,
        "teacher": {"model": {"name": "mlp", "hidden": [6]}, "training": teacher},
        "student": {"model": model, "training": student},
        "supervisions": [{"kind": "one-hot", "name": "labels"}, *entries],
        "complexity": None,
        **rest,
    },
    DATA,
    training(2),
    training(1),
    MODEL,
    st.lists(TRAINED, max_size=2),
    some(
        deviation=st.booleans(),
        complexity=st.sampled_from([None, {"examples": 6, "random_draws": 1, "ridge": 0.01}]),
        loss=st.sampled_from(["cross-entropy", "squared-error"]),
        cache_top_k=st.sampled_from([1, 3]),
        tune=st.sampled_from([None, None, {"learning_rate": [0.05, 0.1]}]),
    ),
)
BAD = st.sampled_from(
    [0, -1, 1.5, 1e30, float("nan"), float("inf"), None, "", "x", "../../x", [], {}, [1], True]
)


@st.composite
def recipes(draw: Draw) -> dict[str, Any]:
    """A sound recipe, or one with a value, a key or a part that somebody got wrong."""
    recipe = copy.deepcopy(draw(SOUND))
    for _ in range(draw(st.sampled_from([0, 1, 1, 1, 2]))):
        target: Any = recipe
        while True:
            keys = list(target) if isinstance(target, dict) else list(range(len(target)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(target[key], (dict, list)) and draw(st.integers(0, 3)):
                target = target[key]
                continue
            match draw(st.sampled_from(["set", "set", "drop", "rename"])):
                case "set":
                    target[key] = draw(BAD)
                case "drop":
                    del target[key]
                case "rename" if isinstance(target, dict):
                    target[f"{key}s"] = target.pop(key)
            break
    return recipe


seen: Counter[str] = Counter()


@pytest.mark.slow
@settings(
    max_examples=10_000,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(recipe=recipes())
def test_a_recipe_runs_or_is_refused_in_one_line(recipe: dict[str, Any]) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        result = distillens.run(recipe, folder / "run")
    except DistillensError as error:
        line = str(error)
        seen[type(error).__name__] += 1
    else:
        line = "ran"
        seen["ran"] += 1
        assert not result.open_cells
    finally:
        shutil.rmtree(folder)
    assert line
    assert "\n" not in line
    assert len(line) < 600


@pytest.mark.slow
def test_many_of_the_recipes_above_ran_and_many_were_refused() -> None:
    # A generator that drifts to one side would make the test above easy.
    assert seen["ran"] > 2000
    assert sum(seen.values()) - seen["ran"] > 2000
