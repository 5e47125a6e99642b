"""Inference mode per component: the decision, and the boundary that enforces it around each component call."""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch

from runner.component import Component

# Pipelines call components through these; everything else they touch is glue, which stays in inference mode.
ENTRY_POINTS = ("forward", "encode", "decode")
# Device types whose torch backend lacks inference mode; there INFERENCE is no_grad.
WITHOUT_INFERENCE_MODE = frozenset({"npu"})


class ExecutionMode(Enum):
    INFERENCE = "inference"
    NORMAL = "normal"


@dataclass(frozen=True)
class Decision:
    """The mode that a component's calls run in, and why."""

    mode: ExecutionMode
    reason: str


def enter(mode: ExecutionMode, device_type: str) -> AbstractContextManager[Any]:
    """The context of `mode`. NORMAL pairs inference_mode(False) with no_grad: alone it would turn autograd on."""
    if device_type in WITHOUT_INFERENCE_MODE:
        return torch.no_grad()
    if mode is ExecutionMode.INFERENCE:
        return torch.inference_mode(True)
    stack = ExitStack()
    stack.enter_context(torch.inference_mode(False))
    stack.enter_context(torch.no_grad())
    return stack


def decide(component: Component) -> Decision:
    """Read off the live module: weights that stay where they are may be used in inference mode."""
    for name, tensor in (*component.module.named_parameters(), *component.module.named_buffers()):
        if tensor.is_inference():
            raise AssertionError(f"{component.name}.{name} is an inference tensor; load it in normal mode")
    return Decision(ExecutionMode.INFERENCE, "resident: its weights do not move")


@dataclass
class Timings:
    """Seconds and calls by stage; `current` is the last stage and component entered, for error reports."""

    seconds: dict[str, float] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    current: tuple[str, str] | None = None

    def add(self, stage: str, seconds: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
        self.calls[stage] = self.calls.get(stage, 0) + 1


@contextmanager
def boundaries(
    components: Sequence[Component], decisions: dict[str, Decision], device: torch.device, timings: Timings
) -> Iterator[None]:
    """While open, every call of a component enters the component's mode and is timed for its stage.

    Wraps the entry points on the instances, keeping their signatures (pipelines inspect them), and takes them off at
    the end. On an accelerator the seconds are the host's: work is queued, not awaited.
    """
    wrapped = []
    for component in components:
        for entry in ENTRY_POINTS:
            method = getattr(component.module, entry, None)
            if callable(method) and callable(getattr(type(component.module), entry, None)):
                stage = "encode" if entry == "encode" else component.stage
                mode = decisions[component.name].mode
                setattr(component.module, entry, _boundary(method, component.name, stage, mode, device.type, timings))
                wrapped.append((component.module, entry))
    try:
        yield
    finally:
        for module, entry in wrapped:
            delattr(module, entry)


def _boundary(
    method: Callable[..., Any], name: str, stage: str, mode: ExecutionMode, device_type: str, timings: Timings
) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        timings.current = (stage, name)
        start = time.perf_counter()
        # The profiler's range costs microseconds a call, so only a running profiler gets one.
        with enter(mode, device_type), _named_range(f"{stage}/{name}"):
            output = method(*args, **kwargs)
        timings.add(stage, time.perf_counter() - start)
        return output

    return call


def _named_range(name: str) -> AbstractContextManager[Any]:
    return torch.profiler.record_function(name) if torch.autograd._profiler_enabled() else nullcontext()
