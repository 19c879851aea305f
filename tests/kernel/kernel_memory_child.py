"""Compute Grams and print how far the process grew: the child of `test_kernel_memory.py`.

Takes a JSON list of cases and prints one JSON line a case.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distillens.errors import KernelError
from distillens.kernel import EmpiricalNTK


class Residual(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.short = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Add the shortcut to the convolutions."""
        return torch.relu(self.body(inputs) + self.short(inputs))


def lenet() -> nn.Module:
    """Return LeNet-5 with twice its channels, for 28 x 28 pictures."""
    return nn.Sequential(
        nn.Conv2d(1, 12, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(12, 32, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(800, 240),
        nn.ReLU(),
        nn.Linear(240, 10),
    )


def resnet() -> nn.Module:
    """Return ResNet-8, for 28 x 28 pictures."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        Residual(16, 16, 1),
        Residual(16, 32, 2),
        Residual(32, 64, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


class Mean(nn.Module):
    """The mean over positions."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return (N, D) of (N, T, D)."""
        return inputs.mean(dim=1)


def positions() -> nn.Module:
    """Return linear maps at each of the 28 rows of a picture, whose gradients are streamed."""
    return nn.Sequential(
        nn.Flatten(1, 2),
        nn.Linear(28, 256),
        nn.ReLU(),
        nn.Linear(256, 256),
        nn.GELU(),
        Mean(),
        nn.Linear(256, 10),
    )


def grown() -> int:
    """Return the most bytes that the process had since its last reset."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def resident() -> int:
    """Return the bytes that the process has, after what is free went back."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmRSS:")[1].split()[0])


def tell(found: dict[str, Any]) -> None:
    """Write a line to the parent."""
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Compute the cases one after the other."""
    torch.set_num_threads(int(sys.argv[2]))
    torch.manual_seed(0)
    # What libraries load at their first use is not memory of the Gram. Three examples are computed by
    # plain Jacobians, 300 by rules, for which speeds are measured and forward derivatives are taken.
    for model in (lenet(), resnet(), positions()):
        EmpiricalNTK(model.eval(), outputs="full").gram(torch.randn(3, 1, 28, 28))
        few = EmpiricalNTK(model.eval(), outputs=0, max_memory=32 * 2**20)
        few.gram(torch.randn(300, 1, 28, 28))
    for case in json.loads(sys.argv[1]):
        made = {"lenet": lenet, "resnet": resnet, "positions": positions}[case["model"]]
        model = made().eval()
        inputs = torch.randn(case["examples"], 1, 28, 28)
        kernel = EmpiricalNTK(model, outputs=case["outputs"], max_memory=case["budget"])
        base = resident()
        Path("/proc/self/clear_refs").write_text("5")
        began = time.perf_counter()
        try:
            plan = kernel.plan(inputs)
        except KernelError as error:
            tell({**case, "error": str(error)})
            continue
        planned = time.perf_counter()
        found = kernel.gram(inputs)
        peak = grown() - base
        del found
        again = time.perf_counter()
        tell(
            {
                **case,
                "peak": peak,
                "planned": plan.memory,
                "plan_seconds": planned - began,
                "estimated": plan.seconds,
                "seconds": again - planned,
                "sizes": vars(plan.sizes),
                "strategies": [layer.strategy for layer in plan.layers],
            }
        )


if __name__ == "__main__":
    main()
