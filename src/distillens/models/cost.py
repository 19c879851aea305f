"""Inference cost of a model: multiply-adds, bytes and measured latency."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from distillens.errors import DeviceError, MeasureError, ModelError, one_line
from distillens.forward.device_errors import checked_device, ran_out_of_memory, translate
from distillens.models.weights import state_bytes
from distillens.results.training import Cost

WARM_UP = 3
"""Forward passes before the clock starts: the first ones allocate memory and choose kernels."""


def measure_cost(
    model: nn.Module,
    input_shape: tuple[int, ...],
    *,
    device: torch.device | str,
    batch: int = 64,
    runs: int = 30,
    vocabularies: tuple[int, ...] = (),
) -> Cost:
    """Count a model's multiply-adds and measure its latency, in evaluation mode and float32.

    A copy is measured; the model keeps its mode, device, type and memory layout. Multiply-adds are
    those of convolutions, matrix products and attention for one input; element-wise work, pooling
    and normalisation are left out, as usual. Latency is wall-clock time of a forward pass, weights
    and inputs laid out contiguously, on as many threads as torch is set to.

    Parameters
    ----------
    model
        Any module that takes (N, \\*input_shape).
    input_shape
        Shape of one input.
    device
        Device of the measurement.
    batch
        Size of the larger batch; the smaller is always 1. Where it does not fit into memory it is
        halved until it does; the result contains the batch size that was measured.
    runs
        Forward passes timed for each batch size.
    vocabularies
        For text: vocabulary size of each tokenizer; measured on sentences of full length.

    Returns
    -------
    Cost
        Latencies in milliseconds: the median over runs, and the quartiles.

    Raises
    ------
    MeasureError
        ``batch`` or ``runs`` is below 1.
    ModelError
        The model cannot take such inputs, or the device does not exist.
    DeviceError
        The memory of the device does not hold one example.
    """
    for name, value in (("batch", batch), ("runs", runs)):
        if value < 1:
            raise MeasureError(f"{name} must be at least 1, got {value}")
    try:
        place = checked_device(device)
        measured = copy.deepcopy(model).to(place, torch.float32).eval()
        measured.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        # Noise, not zeros: some kernels are faster on zeros.
        generator = torch.Generator().manual_seed(0)
        if vocabularies:
            shape = (batch, *input_shape)
            inputs = torch.randint(0, min(vocabularies), shape, generator=generator).to(place)
        else:
            inputs = torch.randn(batch, *input_shape, generator=generator).to(place)
    except (DeviceError, RuntimeError, AssertionError) as error:
        raise ModelError(
            f"the model cannot be measured on {device}: {one_line(error)[:200]}"
        ) from None
    try:
        with torch.no_grad():
            multiply_adds = _multiply_adds(measured, inputs[:1])
            one = _milliseconds(lambda: measured(inputs[:1]), place, runs)
            batch, many = _largest(measured, inputs, place, runs)
    except (RuntimeError, ValueError, IndexError, AssertionError, MemoryError) as error:
        message = translate(error, "one example of the model", "measure it on another device")
        if message is not None:
            raise message from error
        raise ModelError(
            f"the model cannot take inputs of shape {input_shape}: {one_line(error)[:160]}"
        ) from None
    return Cost(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        multiply_adds=multiply_adds,
        weights_bytes=len(state_bytes(model)),
        latency_ms=one[1],
        latency_quartiles_ms=(one[0], one[2]),
        batch=batch,
        latency_batch_ms=many[1],
        latency_batch_quartiles_ms=(many[0], many[2]),
        runs=runs,
        threads=torch.get_num_threads(),
        device=torch.cuda.get_device_name(place) if place.type == "cuda" else str(place),
    )


def _multiply_adds(model: nn.Module, inputs: Tensor) -> int:
    """Count multiply-adds; attention and recurrent layers run as matrix products.

    The counter passes over their fused kernels, which are single operations: they would count nothing.
    """
    counter = FlopCounterMode(display=False)
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            # Some builds of torch warn of TF32 whenever the flags below are touched.
            warnings.catch_warnings(action="ignore"),
            sdpa_kernel(SDPBackend.MATH),
            torch.backends.mkldnn.flags(enabled=False),
            torch.backends.cudnn.flags(enabled=False),
            counter,
        ):
            model(inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    # The counter calls a multiplication and an addition two operations.
    return counter.get_total_flops() // 2


def _largest(
    model: nn.Module, inputs: Tensor, device: torch.device, runs: int
) -> tuple[int, tuple[float, float, float]]:
    """Return the latency of all inputs together, or of as many as fit into memory, and their number."""
    while True:
        try:
            return len(inputs), _milliseconds(partial(model, inputs), device, runs)
        except (RuntimeError, MemoryError) as error:
            if len(inputs) == 1 or not ran_out_of_memory(error):
                raise
        inputs = inputs[: len(inputs) // 2]
        torch.cuda.empty_cache()


def _milliseconds(
    step: Callable[[], Tensor], device: torch.device, runs: int
) -> tuple[float, float, float]:
    """Return the quartiles of the time of a step."""
    for _ in range(WARM_UP):
        step()
    _wait(device)
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        step()
        _wait(device)
        times.append(1000 * (time.perf_counter() - began))
    low, middle, high = np.percentile(times, (25, 50, 75))
    return float(low), float(middle), float(high)


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
