"""Training on a GPU: it does not wait, captures its steps, and resumes. Skipped without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_training_device import (
    BATCH,
    EPOCHS,
    RECIPE,
    SIZE,
    SUPERVISIONS,
    KilledError,
    Reading,
    batches,
    network,
    pictures,
    together,
    watched,
    weights,
)
from torch import nn

from distillens.data import Augmentation, Batches, Examples, Normalisation
from distillens.errors import DataError
from distillens.runs.layout import NetworkFiles
from distillens.supervision import OneHot
from distillens.supervision.block_memory import BLOCKS
from distillens.training import EpochRecord, History, Training, fit, fit_together

pytestmark = pytest.mark.cuda

TOLERANCE = 1e-2
"""How far weights may lie apart after three epochs of steps whose sums are added up in another order."""


@pytest.fixture(autouse=True)
def _no_blocks() -> Iterator[None]:
    yield
    BLOCKS.clear()


def on_gpu(**arguments: Any) -> Batches:
    examples = pictures()
    return Batches(
        examples,
        BATCH,
        normalisation=Normalisation.of(examples),
        augmentation=Augmentation(crop=2, flip=True),
        channels_last=True,
        device="cuda",
        **arguments,
    )


def trained(
    how: str,
    folder: Path,
    *,
    deterministic: bool = True,
    middle: nn.Module | None = None,
    **more: Any,
) -> tuple[torch.Tensor, History]:
    source, model = on_gpu(), network(middle=middle)
    recipe = RECIPE.model_copy(update={"deterministic": deterministic})
    history = fit(model, SUPERVISIONS[how](folder, source), source, recipe, **more)
    return weights(model).cpu(), history


def test_images_have_the_same_bytes_as_on_the_cpu() -> None:
    for epoch in (0, 5):
        here = Batches(pictures(), SIZE, augmentation=Augmentation(crop=2, flip=True), seed=1)
        there = Batches(
            pictures(), SIZE, augmentation=Augmentation(crop=2, flip=True), seed=1, device="cuda"
        )
        for mine, theirs in zip(there.epoch(epoch), here.epoch(epoch), strict=True):
            assert torch.equal(mine.inputs.cpu(), theirs.inputs)
            assert torch.equal(mine.labels.cpu(), theirs.labels)


@pytest.mark.parametrize("how", [how for how in SUPERVISIONS if how not in ("live", "switched")])
@pytest.mark.parametrize("eager", [True, False])
def test_no_step_after_the_first_of_an_epoch_waits(how: str, eager: bool, tmp_path: Path) -> None:
    progress = watched(
        6,
        lambda: torch.cuda.set_sync_debug_mode("error"),
        lambda: torch.cuda.set_sync_debug_mode("default"),
        # Capturing waits, which takes place in the first epoch or, after a window, in the second.
        first=0 if eager else 2,
    )
    try:
        trained(how, tmp_path, progress=progress, middle=_Eager() if eager else None)
    finally:
        torch.cuda.set_sync_debug_mode("default")


class _Eager(nn.Identity):
    """Has a hook, so that steps are not captured."""

    def __init__(self) -> None:
        super().__init__()
        self.register_forward_hook(lambda module, inputs, output: None)


@pytest.mark.parametrize("how", SUPERVISIONS)
def test_captured_steps_train_as_eager_ones_and_as_the_cpu(how: str, tmp_path: Path) -> None:
    captured, history = trained(how, tmp_path / "captured")
    eager, _ = trained(how, tmp_path / "eager", middle=_Eager())
    assert history.notes == ()
    assert torch.equal(captured, eager)
    source, model = batches(False), network()
    fit(model, SUPERVISIONS[how](tmp_path / "cpu", source), source, RECIPE)
    torch.testing.assert_close(captured, weights(model), rtol=TOLERANCE, atol=TOLERANCE)


def test_dropout_draws_other_numbers_in_every_captured_step(tmp_path: Path) -> None:
    ends = []
    for middle in (nn.Dropout(0.5), nn.Sequential(nn.Dropout(0.5), _Eager())):
        torch.manual_seed(3)
        ends.append(trained("labels", tmp_path, middle=middle)[0])
    assert torch.equal(ends[0], ends[1])


@pytest.mark.parametrize("how", ["labels", "offline", "online"])
@pytest.mark.parametrize("deterministic", [True, False])
def test_a_run_that_goes_on_past_its_checkpoint_ends_like_one_that_was_not_interrupted(
    how: str, deterministic: bool, tmp_path: Path
) -> None:
    def interrupt(record: EpochRecord, model: nn.Module) -> None:
        if record.epoch == 2:
            raise KilledError

    asked: dict[str, Any] = {"deterministic": deterministic}
    whole, _ = trained(how, tmp_path / "a", store=NetworkFiles(tmp_path / "whole"), **asked)
    files = NetworkFiles(tmp_path / "cut")
    with pytest.raises(KilledError):
        trained(how, tmp_path / "b", store=files, hooks=[interrupt], **asked)
    BLOCKS.clear()
    resumed, history = trained(how, tmp_path / "c", store=files, **asked)
    assert len(history.records) == EPOCHS
    if deterministic:
        assert torch.equal(whole, resumed)
    else:
        torch.testing.assert_close(whole, resumed, rtol=TOLERANCE, atol=TOLERANCE)


def test_networks_trained_at_the_same_time_have_the_bits_of_those_trained_alone(
    tmp_path: Path,
) -> None:
    source = on_gpu()

    def settled(folder: Path) -> list[Training]:
        return [
            Training(
                **{**vars(one), "recipe": one.recipe.model_copy(update={"deterministic": True})}
            )
            for one in together(folder, source, middle=True)
        ]

    several = fit_together(settled(tmp_path / "several"), source)
    for one, history in zip(settled(tmp_path / "alone"), several, strict=True):
        (alone,) = fit_together([one], source)
        assert history.digest == alone.digest


def test_labels_outside_the_classes_are_named_and_leave_the_gpu_usable() -> None:
    examples = pictures()
    wrong = Examples(examples.inputs, examples.labels + 3, examples.indices, examples.classes)
    with pytest.raises(DataError, match=r"a label is 6, outside 0 to 3"):
        fit(network(), OneHot(), Batches(wrong, BATCH, device="cuda"), RECIPE)
    assert float(torch.ones(2, device="cuda").sum()) == 2


def test_a_network_that_asks_for_a_value_runs_eagerly_and_says_so() -> None:
    history = fit(network(middle=Reading()), OneHot(), on_gpu(), RECIPE)
    assert "makes the host wait" in history.notes[0]
