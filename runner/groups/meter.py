"""What passes over moving weights take, measured while a lift serves: from it the size of the next groups is chosen."""

import ctypes
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter

import torch

from runner.calls.turns import Place
from runner.components.component import Component
from runner.trace.recorder import Recorder
from runner.trace.sums import Sum
from weights.room import available_room


@dataclass
class Pass:
    """One pass over the blocks, and how many calls shared it. It lasts from the end of the pass before to what follows
    its last block: weights are on their way too while the pipeline's own code runs between the two. The first one of
    its component, or after another component's, begins with its first block."""

    calls: int
    began: float
    ended: float
    waited: float = 0.0  # seconds, for weights of its blocks
    measured: float = 0.0  # seconds that measuring took itself

    @property
    def seconds(self) -> float:
        return self.ended - self.began

    @property
    def own(self) -> float:
        """Seconds that each of its calls takes by itself, however many share it."""
        return (self.seconds - self.waited - self.measured) / self.calls


@dataclass
class Passes:
    """Of one component."""

    done: list[Pass] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return sum(one.seconds for one in self.done)

    @property
    def own(self) -> float:
        return statistics.median(one.own for one in self._steady())

    @property
    def waited(self) -> float:
        return statistics.median(one.waited for one in self._steady())

    def _steady(self) -> list[Pass]:
        """The first pass warms up, where there is another one."""
        return self.done[1:] or self.done


class Meter:
    """Measures one group. On an accelerator each block is awaited, so that the host's clock tells of the device.

    [Note: what a transfer takes] How long computing waits for weights says little of how long they were on their way:
    that goes on behind blocks, behind the pipeline's own code, and before a pass begins. So it is not concluded from
    waits: the copies themselves are timed where they are made, and the recorder is told of each.
    """

    def __init__(self, components: Sequence[Component], device: torch.device, recorder: Recorder) -> None:
        self._components, self._device, self._recorder = components, device, recorder
        self.passes: dict[str, Passes] = {}
        self.seconds = 0.0
        self.calls = 1  # the most that shared a pass
        self.held = 0  # bytes that a paused call holds, the most that was seen
        self.has_denoised = False  # in calls that were made, not answered by a log
        self._last: Place | None = None
        self._pass = Pass(0, 0.0, 0.0)  # the one that goes on
        self._fetched_before = self._fetched_so_far()
        self._began, self._base = perf_counter(), self._beside_weights()

    def begin(self, place: Place, calls: int) -> None:
        """So many calls are about to run a block."""
        passes = self.passes.setdefault(self._components[place.component].name, Passes())
        last, self._last = self._last, place
        if last is None or place <= last or place.component != last.component:
            goes_on = last is not None and place.component == last.component
            began = self._pass.ended if goes_on else perf_counter()
            self._pass = Pass(calls, began, began)
            passes.done.append(self._pass)
            self.calls = max(self.calls, calls)

    def waited(self, seconds: float) -> None:
        self._pass.waited += seconds

    def computed(self) -> None:
        """A call has run a block, and what follows it."""
        self._pass.ended = perf_counter()

    def fetched(self) -> dict[str, Sum]:
        """What was copied of each component's weights since the meter began, and the seconds that the copies took.
        Waits for the device: between requests."""
        sums = self._fetched_so_far()
        for name, before in self._fetched_before.items():
            sums[name].seconds -= before.seconds
            sums[name].num_bytes -= before.num_bytes
        return sums

    def _fetched_so_far(self) -> dict[str, Sum]:
        self._recorder.settle()
        sums: dict[str, Sum] = {}
        for kind, total in self._recorder.sums.items():
            if kind.name == "prefetch":
                one = sums.setdefault(kind.component, Sum())
                one.seconds += total.seconds
                one.num_bytes += total.num_bytes
        return sums

    def paused(self) -> None:
        """All calls are paused, and no block is up for them. On the CPU asking for the memory takes a millisecond."""
        began = perf_counter()
        self.held = max(self.held, (self._beside_weights() - self._base) // self._pass.calls)
        self._pass.measured += (took := perf_counter() - began)
        self._pass.ended += took

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
