"""The training loop that public distillation code has, to compare with.

A data set of pictures in memory that makes a PIL image of each, PIL transforms one picture at a time in
two DataLoader workers, float32, and the teacher's forward pass live at every step of every student.
Careful, it is the same loop with bfloat16 autocast and channels-last. Nothing of distillens is used.

Shapes: N examples, B of a batch, C classes; pictures are (height, width, 3) bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax
from torch.utils.data import DataLoader, Dataset

WORKERS = 2


class RandomCrop:
    """Add a black border, then cut the original size out at a random place."""

    def __init__(self, padding: int) -> None:
        self.padding = padding

    def __call__(self, picture: Image.Image) -> Image.Image:
        width, height = picture.size
        bordered = ImageOps.expand(picture, border=self.padding, fill=0)
        top, left = (int(torch.randint(0, 2 * self.padding + 1, (1,))) for _ in range(2))
        return bordered.crop((left, top, left + width, top + height))


class RandomHorizontalFlip:
    """Mirror half of the pictures left to right."""

    def __call__(self, picture: Image.Image) -> Image.Image:
        if torch.rand(1) < 0.5:
            return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return picture


class ToTensor:
    """A PIL image as a (3, height, width) float32 tensor in [0, 1]."""

    def __call__(self, picture: Image.Image) -> Tensor:
        values = torch.from_numpy(np.array(picture, dtype=np.uint8, copy=True))
        return values.permute(2, 0, 1).contiguous().float().div(255)


class Normalise:
    """Subtract the mean and divide by the standard deviation of each channel."""

    def __init__(self, mean: Sequence[float], deviation: Sequence[float]) -> None:
        self.mean, self.deviation = list(mean), list(deviation)

    def __call__(self, values: Tensor) -> Tensor:
        mean = torch.as_tensor(self.mean).view(-1, 1, 1)
        deviation = torch.as_tensor(self.deviation).view(-1, 1, 1)
        return values.clone().sub_(mean).div_(deviation)


class Compose:
    """Transforms, one after the other."""

    def __init__(self, *steps: Callable) -> None:
        self.steps = steps

    def __call__(self, picture: Any) -> Any:
        for step in self.steps:
            picture = step(picture)
        return picture


class Pictures(Dataset):
    """Bytes in memory, each seen as a PIL image through a transform."""

    def __init__(self, pictures_NHWC: np.ndarray, labels_N: Tensor, transform: Compose) -> None:
        self.pictures, self.labels, self.transform = pictures_NHWC, labels_N, transform

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        picture = Image.fromarray(self.pictures[place])
        return self.transform(picture), int(self.labels[place])


@dataclass(frozen=True)
class Hyperparameters:
    """Of one training, its lengths in steps where nothing else is said.

    The learning rate rises linearly over ``warmup`` steps, and is divided by 10 at ``milestones``.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    warmup: int
    milestones: tuple[int, ...]

    def rate_factor(self, step: int) -> float:
        """Return the learning rate at a step as a share of its peak."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        return 0.1 ** sum(step >= milestone for milestone in self.milestones)


@dataclass(frozen=True)
class LiveTeacher:
    """A teacher whose forward pass is part of each step.

    ``checkpoints`` names the weights of each epoch: the last ones every time (offline), or those that
    the teacher had after the same epoch (online).
    """

    model: nn.Module
    checkpoints: Sequence[Path]
    temperature: float


def distillation_loss(student_BC: Tensor, teacher_BC: Tensor, temperature: float) -> Tensor:
    """T² · KL(teacher ‖ student), both at temperature T, as a mean over the batch."""
    student = log_softmax(student_BC / temperature, dim=1)
    teacher = softmax(teacher_BC / temperature, dim=1)
    return kl_div(student, teacher, reduction="batchmean") * temperature**2


def train_network(
    model: nn.Module,
    pictures: Dataset,
    how: Hyperparameters,
    *,
    seed: int,
    teacher: LiveTeacher | None = None,
    careful: bool = False,
    save: Callable[[int], Path] | None = None,
) -> float:
    """Train a model in place on the labels, or on a live teacher alone.

    Parameters
    ----------
    model
        With (B, C) outputs.
    pictures
        What :class:`Pictures` yields.
    how
        Hyperparameters.
    seed
        Of the order and the augmentation.
    teacher
        None trains on the labels.
    careful
        bfloat16 autocast for both networks, and channels-last.
    save
        Where the weights after an epoch (from 1) go; None keeps none.

    Returns
    -------
    Seconds of all epochs, with their checkpoints.
    """
    torch.manual_seed(seed)
    # Persistent workers spare the loops two forks an epoch, which short epochs would feel.
    loader = DataLoader(
        pictures,
        how.batch_size,
        shuffle=True,
        num_workers=WORKERS,
        persistent_workers=True,
    )
    layout = torch.channels_last if careful else torch.contiguous_format
    model.to(memory_format=layout)  # type: ignore[call-overload]
    if teacher is not None:
        teacher.model.to(memory_format=layout)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=how.learning_rate,
        momentum=0.9,
        nesterov=True,
        weight_decay=how.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, how.rate_factor)
    began = time.perf_counter()
    for epoch in range(how.epochs):
        model.train()
        if teacher is not None:
            _load(teacher.model, teacher.checkpoints, epoch)
        for inputs, labels in loader:
            inputs = inputs.to(memory_format=layout)
            with torch.autocast("cpu", torch.bfloat16, enabled=careful):
                logits = model(inputs)
            if teacher is None:
                loss = cross_entropy(logits.float(), labels)
            else:
                with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=careful):
                    taught = teacher.model(inputs)
                loss = distillation_loss(logits.float(), taught.float(), teacher.temperature)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if save is not None:
            torch.save(model.state_dict(), save(epoch + 1))
    return time.perf_counter() - began


def _load(model: nn.Module, checkpoints: Sequence[Path], epoch: int) -> None:
    if epoch == 0 or checkpoints[epoch] != checkpoints[epoch - 1]:
        model.load_state_dict(torch.load(checkpoints[epoch], weights_only=True))
    model.eval()


@torch.no_grad()
def count_correct(model: nn.Module, pictures: Dataset, batch_size: int = 512) -> int:
    """Return how many examples the model classifies rightly, in float32 and evaluation mode."""
    model.eval()
    right = 0
    for inputs, labels in DataLoader(pictures, batch_size, num_workers=WORKERS):
        right += int((model(inputs).argmax(1) == labels).sum())
    return right
