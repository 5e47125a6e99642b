"""What is the thread's or the process's, and has to be each turn's own: left at a switch, and taken up again after it.

[Note: what a switch keeps] Modes (inference, grad, autocast, function modes such as `with torch.device`) are the
thread's: each side of a switch takes up what it had. The global generators are the process's. Torch's are exchanged at
every switch; numpy's and Python's, whose states cost a tenth of a millisecond to exchange, only for the pipeline's own
code and for whole calls of a component: blocks do not draw from them.
"""

import functools
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from runner.progress import At, Progress
from weights.modes import normal_mode


@dataclass(eq=False)
class Kept:
    """What a paused turn takes up again; None where it has not been kept, or is in place."""

    by_torch: tuple[torch.Tensor, torch.Tensor | None] | None = None  # the CPU's generator, and the device's
    others: tuple[Any, Any] | None = None  # numpy's and Python's
    progress: At | None = None


class Switch:
    """Exchanges, between the turns of a group, the global generators and what the watch is told."""

    def __init__(self, device: torch.device, progress: Progress) -> None:
        self._device, self._progress = device, progress
        self._running: Kept | None = None
        self._owner: Kept | None = None  # whose numpy's and Python's generators are in place

    @property
    def running(self) -> Kept | None:
        """What the turn that runs keeps, or ran last."""
        return self._running

    def to(self, kept: Kept, *, is_inside: bool) -> None:
        """The turn that keeps `kept` is about to go on; `is_inside`: at a block."""
        if self._running is not kept:
            if self._running is not None:
                self._running.by_torch = _torch_generators(self._device)
                self._running.progress = self._progress.at
            if kept.by_torch is not None:
                _set_torch_generators(kept.by_torch, self._device)
            if kept.progress is not None:
                self._progress.go_to(kept.progress)
            self._running = kept
        if not is_inside:
            self.to_glue(kept)

    def to_glue(self, kept: Kept) -> None:
        """The turn's own code goes on, not that of a block."""
        if self._owner is not kept:
            if self._owner is not None:
                self._owner.others = (np.random.get_state(), random.getstate())
            if kept.others is not None:
                np.random.set_state(kept.others[0])
                random.setstate(kept.others[1])
            self._owner = kept


def _torch_generators(device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    on_device = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)
    return torch.get_rng_state(), on_device


def _set_torch_generators(states: tuple[torch.Tensor, torch.Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if states[1] is not None:
        torch.get_device_module(device).set_rng_state(states[1], device)


@contextmanager
def as_it_was() -> Iterator[None]:
    """Around a switch: leave the modes for whoever goes on, and take them up again, whatever was done to them."""
    autocast, functions = _autocast(), _function_modes()
    try:
        with normal_mode():  # its guards store what they find, and put back exactly that
            yield
    finally:
        if _autocast() != autocast:
            _set_autocast(autocast)
        if _function_modes() != functions:
            _set_function_modes(functions)


_Autocast = tuple[bool, list[tuple[str, bool, torch.dtype]]]


def _autocast() -> _Autocast:
    states = [(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in _device_types()]
    return torch.is_autocast_cache_enabled(), states


def _set_autocast(state: _Autocast) -> None:
    is_cached, kinds = state
    torch.set_autocast_cache_enabled(is_cached)
    for kind, is_enabled, dtype in kinds:
        torch.set_autocast_enabled(kind, is_enabled)
        torch.set_autocast_dtype(kind, dtype)
    torch.clear_autocast_cache()  # of weights that were cast for another turn


@functools.cache
def _device_types() -> tuple[str, ...]:
    accelerator = torch.accelerator.current_accelerator()
    return ("cpu",) if accelerator is None else ("cpu", accelerator.type)


def _function_modes() -> list[Any]:
    return [torch._C._get_function_stack_at(place) for place in range(torch._C._len_torch_function_stack())]


def _set_function_modes(modes: list[Any]) -> None:
    while torch._C._len_torch_function_stack():
        torch._C._pop_torch_function_stack()
    for mode in modes:
        torch._C._push_on_torch_function_stack(mode)
