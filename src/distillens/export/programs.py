"""Networks as files that run without distillens: ``torch.export`` programs and ONNX."""

from __future__ import annotations

import importlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from distillens.errors import CheckpointError, ModelError
from distillens.files.atomic import write_atomically

ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")

Program = Callable[[Tensor], Tensor]
"""A program: maps a batch of inputs to logits."""


def check_onnx() -> None:
    """Raise ModelError if the ``onnx`` extra is not installed."""
    for package in ONNX_PACKAGES:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ModelError(
                f"ONNX needs {package} ({' '.join(str(error).split())[:120]}): "
                "pip install 'distillens[onnx]'"
            ) from None


def write_torch(path: Path, module: nn.Module, inputs: Tensor) -> None:
    """Write a module as a ``torch.export`` program of any batch size, for inputs like these two.

    Raises
    ------
    ModelError
        It has Python that a program cannot hold, such as branches on values or a fixed batch size.
    """

    def encoded(program: ExportedProgram) -> bytes:
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
        return buffer.getvalue()

    _write(path, module, inputs, encoded)


def read_torch(path: Path) -> Program:
    """Read a ``torch.export`` program back; only one that this process wrote is trusted."""
    with _quiet():
        return torch.export.load(path).module()


def write_onnx(path: Path, module: nn.Module, inputs: Tensor) -> None:
    """Write a module as ONNX, input ``inputs`` and output ``logits``, for batches like these two.

    The batch may have any size.

    Raises
    ------
    ModelError
        The ``onnx`` extra is missing, or as :func:`write_torch`.
    """
    check_onnx()

    def encoded(program: ExportedProgram) -> bytes:
        exported = torch.onnx.export(
            program,
            (),
            dynamo=True,
            verbose=False,
            input_names=["inputs"],
            output_names=["logits"],
        )
        assert exported is not None
        return exported.model_proto.SerializeToString()

    _write(path, module, inputs, encoded)


def read_onnx(path: Path) -> Program:
    """Read an ONNX file with onnxruntime on the CPU.

    Raises
    ------
    CheckpointError
        onnxruntime cannot run it.
    """
    onnxruntime: Any = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(
            path.read_bytes(), options, providers=["CPUExecutionProvider"]
        )
    # onnxruntime's exceptions have no common base.
    except Exception as error:
        text = " ".join(str(error).split())[:160]
        raise CheckpointError(f"onnxruntime cannot run {path}: {text}") from None
    return lambda inputs: torch.from_numpy(session.run(None, {"inputs": inputs.numpy()})[0])


def _write(
    path: Path, module: nn.Module, inputs: Tensor, encoded: Callable[[ExportedProgram], bytes]
) -> None:
    """Trace a module and write its program in a format."""
    # Two examples, because the tracer would fix a batch size of one.
    assert len(inputs) == 2
    batch = Dim("batch", min=1)
    try:
        with _quiet():
            program = torch.export.export(
                module, (inputs,), dynamic_shapes=({0: batch},), strict=False
            )
            content = encoded(program)
    # Tracing raises whatever the model's code or one of the tracer's passes does.
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        text = (lines[0] if lines else type(error).__name__)[:200]
        raise ModelError(f"{path.name} cannot be made of this network: {text}") from None
    write_atomically(path, content)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress torch's internal warnings and those about a missing torchvision."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        log.setLevel(level)
