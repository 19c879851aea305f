"""Training steps that a GPU repeats as one CUDA graph.

Small networks are bound by the number of kernel launches: each costs the host several microseconds,
more than most kernels of a small network take. A graph launches all kernels of a step at once. It
repeats the operations that it was captured from on the same memory, so whatever changes from step to
step lies in tensors that stay in place: the positions of the batch's examples, the learning rate, the
temperature and the teacher's logits of the epoch. Everything else must be constant, which is verified on
two eager steps before the capture.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from distillens.data.batches import Batches, OpenEpoch
from distillens.errors import one_line
from distillens.supervision.protocol import NotCapturable, phase_of
from distillens.training.step import TrainingStep

WARM_UP = 3
"""Steps that run eagerly before one is captured: libraries set themselves up, two are watched."""

WAITS = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
"""Tags of operations whose result the host must know: they wait for the device."""


class CudaGraph:
    """A CUDA graph on the current stream, which must not be the default one."""

    def __init__(self) -> None:
        self._graph = torch.cuda.CUDAGraph()

    def capture(self, body: Callable[[], None]) -> None:
        """Capture the operations that a function calls."""
        with torch.cuda.graph(self._graph, stream=torch.cuda.current_stream()):
            body()

    def replay(self) -> None:
        """Replay the captured operations."""
        self._graph.replay()

    def close(self) -> None:
        """Wait until the graph has finished, and free its memory."""
        torch.cuda.current_stream().synchronize()
        self._graph.reset()


def graph_for(device: torch.device) -> Callable[[], CudaGraph] | None:
    """Return a function that creates graphs on a device; None if steps are never captured."""
    return CudaGraph if device.type == "cuda" else None


class CapturedStep:
    """The steps of one network on batches that are held on the device, captured where that is possible.

    Otherwise, steps run eagerly and ``reason`` is the reason.

    Parameters
    ----------
    step
        The training step.
    batches
        Source of its batches.
    new_graph
        Creates a graph.
    """

    def __init__(
        self, step: TrainingStep, batches: Batches, new_graph: Callable[[], CudaGraph]
    ) -> None:
        self._step, self._new_graph = step, new_graph
        size = min(batches.batch_size, len(batches.examples))
        device = step.accelerator.device
        self._positions = torch.zeros(size, dtype=torch.int64, device=device)
        self._key: Hashable = None
        self._watched: list[Watch] = []
        self._graph: CudaGraph | None = None
        self.draws = True
        """Whether a step changes the global random states; True until it is known."""
        self.reason: str | None = reason_against(step, batches)
        if self.reason is None:
            _prepare_optimizer(step.optimizer, device)

    def __call__(self, opened: OpenEpoch, place: int, number: int) -> None:
        """Take the step of a batch of the epoch; ``number`` counts the steps of the whole training."""
        positions = opened.positions(place)
        if self.reason is not None or len(positions) < len(self._positions):
            self._step(opened.batch(place), number)
            return
        step = self._step
        step.supervision.advance(opened.outline, number)
        step.set_rate(number)
        try:
            phase = phase_of(step.supervision, number)
        except NotCapturable as reason:
            self._give_up(str(reason))
            phase = None
        if phase is None:
            step.update(step.known(opened.batch(place)), number)
            return
        key = (phase, opened.inputs.data_ptr())
        if key != self._key:
            self._drop_graph()
            self._key, self._watched, self.draws = key, [], True
        self._positions.copy_(positions)

        def body() -> None:
            step.update(step.known(opened.gather(self._positions)), number)

        if self._graph is None and len(self._watched) == WARM_UP:
            self._graph = self._captured(body)
        if self._graph is not None:
            self._graph.replay()
        elif self.reason is not None:
            body()
        else:
            self._warm_up(body)

    def _warm_up(self, body: Callable[[], None]) -> None:
        """Run a step eagerly and record its operations."""
        watch = Watch(self._positions.device, looks=not self._step.recipe.compile)
        with watch:
            body()
        self._watched.append(watch)
        if len(self._watched) == WARM_UP:
            reason = self._watched[-1].reason_against(self._watched[-2])
            self.draws = self._watched[-1].draws
            if reason is not None:
                self._give_up(reason)

    def _captured(self, body: Callable[[], None]) -> CudaGraph | None:
        graph = self._new_graph()
        try:
            graph.capture(body)
        except RuntimeError as error:
            self._give_up(f"capturing it stopped with: {one_line(error)[:160]}")
            self._step.forget_gradients()
            return None
        return graph

    def _give_up(self, reason: str) -> None:
        self._drop_graph()
        self.reason, self.draws = reason, True

    def _drop_graph(self) -> None:
        if self._graph is not None:
            self._graph.close()
            self._graph = None


def reason_against(step: TrainingStep, batches: Batches) -> str | None:
    """Return why the steps of a training cannot be captured; None if no reason is known."""
    recipe = step.recipe
    parameters = list(step.model.parameters())
    if recipe.accumulate > 1:
        return f"a step has {recipe.accumulate} micro-batches (accumulate)"
    if step.accelerator.num_processes > 1:
        return f"{step.accelerator.num_processes} processes share each batch"
    if batches.label_span is None:
        return "some labels do not count"
    if not step.optimizer.defaults["fused"]:
        return "the optimizer has no fused step for these parameters"
    if any(_is_hooked(module) for module in step.model.modules()):
        return "the network has hooks, which a graph would leave out"
    if any(p._backward_hooks or p._post_accumulate_grad_hooks for p in parameters):  # type: ignore[attr-defined]
        return "a parameter has hooks, which a graph would leave out"
    if recipe.compile and not all(_is_known(module) for module in step.model.modules()):
        return (
            "the network is compiled and not one of distillens' own, so its steps cannot be watched"
        )
    try:
        phase_of(step.supervision, 0)
    except NotCapturable as reason:
        return str(reason)
    return None


class Watch(TorchDispatchMode):
    """Detects operations of a step that a graph would not replay.

    A step may be captured if the step before called the same operations, on tensors of the same shapes
    and with the same numbers, drew nothing from the random generators of the host, and did not wait for
    the device. Without ``looks``, operations are not seen: a compiled network would run uncompiled.
    """

    def __init__(self, device: torch.device, *, looks: bool = True) -> None:
        super().__init__()
        self._device, self._looks = device, looks
        self._calls: list[Any] = []
        self._waits: str | None = None
        self._draws_on_host = self.draws = False

    def __enter__(self) -> Watch:
        self._before = self._random_states()
        if self._looks:
            super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._looks:
            super().__exit__(*error)
        after = self._random_states()
        self._draws_on_host, self.draws = self._before[0] != after[0], self._before != after

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self._calls.append((str(func), tree_map(_described, (args, kwargs))))
        if self._waits is None and _waits(func, args, result):
            self._waits = str(func)
        return result

    def reason_against(self, before: Watch) -> str | None:
        """Return why the step cannot be captured, given the step before it."""
        if self._waits is not None:
            return f"{self._waits} makes the host wait for the device"
        if self._draws_on_host:
            return "a step draws random numbers on the host"
        if self._calls != before._calls:
            return "two steps called different operations"
        return None

    def _random_states(self) -> tuple[Any, bytes]:
        """Return the states of the random generators of the host and of the device."""
        legacy: Any = np.random.get_state()  # noqa: NPY002
        numpy = (legacy[1].tobytes(), legacy[2:])
        host = (random.getstate(), bytes(torch.get_rng_state().numpy()), numpy)
        if self._device.type != "cuda":
            return host, b""
        return host, bytes(torch.cuda.get_rng_state(self._device).numpy())


def _waits(func: Any, args: Any, result: Any) -> bool:
    """Return whether the host waits for the device in an operation."""
    name = func.overloadpacket.__name__
    if name.startswith("index"):
        # By positions nothing is waited for; a mask is turned into positions first.
        return any(each.dtype in (torch.bool, torch.uint8) for each in _tensors(args[1]))
    if "copy" in name and _devices(result) != _devices(args):
        return True
    return any(tag in func.tags for tag in WAITS)


def _described(value: Any) -> Any:
    """Return what an argument of an operation is, without its values where it is a tensor."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype
    return value if isinstance(value, (bool, int, float, str)) else str(type(value))


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _devices(value: Any) -> set[str]:
    return {tensor.device.type for tensor in _tensors(value)}


def _is_hooked(module: nn.Module) -> bool:
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name, None) for name in names)


def _is_known(module: nn.Module) -> bool:
    return type(module).__module__.startswith(("torch.", "distillens.models."))


def _prepare_optimizer(optimizer: Any, device: torch.device) -> None:
    """Put the values that the optimizer reads into tensors on the device."""
    for group in optimizer.param_groups:
        group["lr"] = torch.full((), float(group["lr"]), dtype=torch.float32, device=device)
        if "capturable" in group:
            group["capturable"] = device.type == "cuda"
