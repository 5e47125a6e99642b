"""What passes over moving weights take, measured while a lift serves: from it the size of the next groups is chosen."""

import ctypes
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter

import torch

import sharding
from runner.calls.turns import Place
from runner.components.component import Component
from weights.room import available_room


@dataclass
class Pass:
    """One pass over the blocks: seconds that their weights were waited for, that the blocks computed, and how many
    calls shared it."""

    calls: int
    waited: float = 0.0
    computed: float = 0.0


@dataclass
class Passes:
    """Of one component. `hides`: weights came up while blocks computed, so that only the rest of it was waited for."""

    hides: bool
    done: list[Pass] = field(default_factory=list)

    @property
    def compute(self) -> float:
        """Seconds that one call computes in a pass."""
        return statistics.median(one.computed / one.calls for one in self._steady())

    @property
    def transfer(self) -> float:
        """Seconds that the weights take to come up in a pass. Where blocks had to wait for them, they were on their way
        all the time; where not, it is at most what the blocks computed."""
        return statistics.median(one.waited + (one.computed if self.hides else 0.0) for one in self._steady())

    def _steady(self) -> list[Pass]:
        """The first pass warms up, where there is another one."""
        return self.done[1:] or self.done


class Meter:
    """Measures one group. On an accelerator each block is awaited, so that the host's clock tells of the device."""

    def __init__(self, components: Sequence[Component], device: torch.device) -> None:
        self._components, self._device = components, device
        self.passes: dict[str, Passes] = {}
        self.seconds = 0.0
        self.held = 0  # bytes that a paused call holds, the most that was seen
        self._began, self._base = perf_counter(), self._beside_weights()
        self._last: Place | None = None

    def begin(self, place: Place, calls: int) -> None:
        """So many calls are about to run a block."""
        component = self._components[place.component]
        passes = self.passes.setdefault(component.name, Passes(hides=not sharding.is_sharded(component.module)))
        last, self._last = self._last, place
        if last is None or place <= last or place.component != last.component:
            passes.done.append(Pass(calls))
        self._pass = passes.done[-1]

    def waited(self, seconds: float) -> None:
        self._pass.waited += seconds

    def computed(self, seconds: float) -> None:
        self._pass.computed += seconds

    def paused(self) -> None:
        """All calls are paused, and no block is up for them."""
        self.held = max(self.held, self._beside_weights() - self._base)

    def end(self) -> None:
        self.seconds = perf_counter() - self._began

    def await_device(self) -> None:
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)

    @property
    def room(self) -> int | None:
        """How many more paused calls the memory would hold; None where nobody counts it."""
        if self.held <= 0 or (free := free_bytes(self._device)) is None:
            return None
        return int(free / (1.25 * self.held))  # a quarter for what the allocators waste

    def _beside_weights(self) -> int:
        return bytes_in_use(self._device) - sum(component.num_bytes for component in self._components)


def bytes_in_use(device: torch.device) -> int:
    """By tensors, and on the CPU by all else that the C library has handed out; 0 where nobody counts them."""
    if device.type != "cpu":
        return torch.accelerator.memory_allocated(device) if hasattr(torch.accelerator, "memory_allocated") else 0
    mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo is None:
        return 0
    mallinfo.restype = _Mallinfo
    info = mallinfo()
    return int(info.uordblks + info.hblkhd)


def free_bytes(device: torch.device) -> int | None:
    """What may still be allocated on the device."""
    if device.type == "cpu":
        return available_room().num_bytes
    module = torch.get_device_module(device)
    if not hasattr(module, "mem_get_info"):
        return None
    cached = torch.accelerator.memory_reserved(device) - torch.accelerator.memory_allocated(device)
    return int(module.mem_get_info(device)[0] + cached)


class _Mallinfo(ctypes.Structure):
    """struct mallinfo2 of glibc 2.33."""

    _fields_ = [
        ("arena", ctypes.c_size_t),
        ("ordblks", ctypes.c_size_t),
        ("smblks", ctypes.c_size_t),
        ("hblks", ctypes.c_size_t),
        ("hblkhd", ctypes.c_size_t),
        ("usmblks", ctypes.c_size_t),
        ("fsmblks", ctypes.c_size_t),
        ("uordblks", ctypes.c_size_t),
        ("fordblks", ctypes.c_size_t),
        ("keepcost", ctypes.c_size_t),
    ]
