"""Choose the schedule of a recipe by validation accuracy, without looking at distillation.

    python benchmarks/schedules.py recipes/digits.yaml --rates 0.05,0.1,0.2 --epochs 20,40 --seeds 5

trains the teacher or the student of a recipe on labels with every combination of learning-rate schedule,
peak learning rate and number of epochs, and prints the validation accuracy and the seconds of each. No
distilled student is trained and no test example is predicted. From the spread between seeds it also
states how many seeds a recipe needs so that a paired difference of --resolve points can be told from 0.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine
from scipy.stats import t as student_t

from distillens.data import Batches, Normalisation, Splits, load_splits
from distillens.errors import DivergenceError
from distillens.models import build_model
from distillens.study import Recipe, read_recipe
from distillens.supervision import OneHot
from distillens.training import Schedule, TrainingRecipe, accelerator_for, accuracy, fit, predict

SCHEDULES = {
    "step": Schedule(kind="step"),
    "cosine": Schedule(kind="cosine"),
}


def main() -> None:
    """Train all combinations and print them as a table."""
    asked = arguments()
    torch.set_num_threads(asked.threads)
    started = machine(asked.threads)
    recipe = read_recipe(asked.recipe, tuple(asked.overrides))
    splits = load_splits(recipe.data)
    if splits.validation is None:
        sys.exit("the recipe has no validation examples; set data.validation_size")
    rows = []
    for role in asked.roles:
        base = recipe.teacher.training if role == "teacher" else recipe.student.training
        if base is None:
            sys.exit("the teacher of this recipe is not trained; give --roles student")
        for kind, rate, epochs in itertools.product(SCHEDULES, asked.rates, asked.epochs):
            schedule = SCHEDULES[kind].model_copy(update={"warmup": base.schedule.warmup})
            training = base.model_copy(
                update={"schedule": schedule, "learning_rate": rate, "epochs": epochs}
            )
            row = measure(recipe, splits, training, role, asked.seeds)
            rows.append({"role": role, "schedule": kind, "rate": rate, "epochs": epochs, **row})
            print(line(rows[-1]), flush=True)
    best = {role: max((r for r in rows if r["role"] == role), key=mean) for role in asked.roles}
    for role, row in best.items():
        print(f"highest mean, {line(row)}")
        if len(row["validation"]) > 1:
            deviation = float(np.std(row["validation"], ddof=1))
            count = seeds_to_resolve(deviation, asked.resolve)
            print(
                f"{role}: standard deviation between seeds {deviation:.2f} points; {count} seeds "
                f"resolve a paired difference of {asked.resolve:g} points if the networks of a pair "
                "vary independently"
            )
    if asked.out:
        Path(asked.out).write_text(
            json.dumps({"provenance": started, "rows": rows}, indent=1) + "\n"
        )


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("recipe", help="a recipe file or the name of a shipped recipe")
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE, as for distillens run")
    parser.add_argument("--roles", type=words, default=["teacher", "student"])
    parser.add_argument("--rates", type=numbers, default=[0.02, 0.05, 0.1])
    parser.add_argument("--epochs", type=lambda text: [int(x) for x in numbers(text)], default=[20])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--resolve", type=float, default=1.0, help="points of accuracy")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", help="a JSON file for all accuracies")
    return parser.parse_args()


def words(text: str) -> list[str]:
    """Split a list with commas."""
    return text.split(",")


def numbers(text: str) -> list[float]:
    """Read a list of numbers with commas."""
    return [float(word) for word in words(text)]


def measure(
    recipe: Recipe, splits: Splits, training: TrainingRecipe, role: str, seeds: int
) -> dict[str, Any]:
    """Return the validation accuracies in percent, one for each seed, and the seconds of a network."""
    assert splits.validation is not None
    model = recipe.teacher.model if role == "teacher" else recipe.student.model
    assert model is not None
    train = splits.train
    normalisation = Normalisation.of(train)
    outputs = 1 if len(train.classes) == 2 else len(train.classes)
    found, began = [], time.perf_counter()
    for seed in range(seeds):
        network = build_model(model, train.input_shape, outputs, seed=seed)
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        batches = Batches(
            train,
            training.batch_size,
            normalisation=normalisation,
            augmentation=recipe.data.augmentation,
            seed=seed,
            channels_last=True,
        )
        try:
            fit(
                network,
                OneHot(recipe.loss),
                batches,
                training,
                accelerator=accelerator_for(recipe.precision),
            )
        except DivergenceError:
            found.append(0.0)
            continue
        logits = predict(network, splits.validation, normalisation)
        found.append(100 * accuracy(logits, splits.validation.labels.numpy())[0])
    seconds = (time.perf_counter() - began) / seeds
    return {"validation": found, "seconds": seconds}


def mean(row: dict[str, Any]) -> float:
    """Return a row's mean accuracy."""
    return float(np.mean(row["validation"]))


def line(row: dict[str, Any]) -> str:
    """Return a row as text."""
    spread = f" ± {np.std(row['validation'], ddof=1):.2f}" if len(row["validation"]) > 1 else ""
    return (
        f"{row['role']}: {row['schedule']}, learning rate {row['rate']:g}, {row['epochs']} epochs: "
        f"{mean(row):.2f}{spread} % on validation, {row['seconds']:.1f} s"
    )


def seeds_to_resolve(deviation: float, points: float, most: int = 100) -> int:
    """Return the fewest seeds whose 95 % interval of a paired difference is at most ± ``points``."""
    for count in range(2, most):
        half = float(student_t.ppf(0.975, count - 1)) * math.sqrt(2) * deviation / math.sqrt(count)
        if half <= points:
            return count
    return most


if __name__ == "__main__":
    main()
