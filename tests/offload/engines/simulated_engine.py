"""A device that is simulated to the last wait: who must come after whom is checked, not whether it happened to.

The real `StreamEngine` runs on streams, events and a thread that keep vector clocks: for each actor (host, thread, and
the two streams), the last step of every other actor that is sure to be over. Every access of a buffer is a step; it
raises Unordered unless the accesses it must follow are in its actor's past. The bytes themselves are copied at once, so
the values come out right and only the order can be wrong.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from offload.engines.engine import Mark
from offload.engines.stream import StreamEngine
from offload.stores.store import Store
from weights.observer import Observer

Clock = dict[str, int]
Step = tuple[str, int]
COMPUTE, COPIES, HOST, THREAD = "compute", "copies", "host", "thread"


class Unordered(AssertionError):
    """An access that nothing orders after one that it must follow, or of a buffer that holds something else."""


class Buffer:
    """Bytes, what they hold, the last write, and the reads since. Kept when it is freed, so that no address returns."""

    def __init__(self, name: str, memory: torch.Tensor, made: Step) -> None:
        self.name, self.memory = name, memory
        self.unit: str | None = None
        self.freed = False
        self.written: Step = made
        self.reads: list[Step] = []


class Simulation:
    """The clocks, and the buffers by address. `capacity` is the device's memory in bytes."""

    def __init__(self, capacity: int | None = None) -> None:
        self.actor = HOST
        self.capacity = capacity
        self.clocks: dict[str, Clock] = {actor: {} for actor in (COMPUTE, COPIES, HOST, THREAD)}
        self.buffers: dict[int, Buffer] = {}

    def join(self, actor: str, past: Mapping[str, int]) -> None:
        """All in `past` is over before the actor's next step."""
        clock = self.clocks[actor]
        for other, step in past.items():
            clock[other] = max(clock.get(other, 0), step)

    def step(self, actor: str) -> Step:
        """What the running host thread queues, or does, comes after all that it knows to be over."""
        self.join(actor, self.clocks[self.actor])
        clock = self.clocks[actor]
        clock[actor] = clock.get(actor, 0) + 1
        return actor, clock[actor]

    def over(self, step: Step, before: str) -> bool:
        return self.clocks[before].get(step[0], 0) >= step[1]

    def read(self, buffer: Buffer, actor: str) -> None:
        self._refuse_freed(buffer, f"{actor} reads")
        step = self.step(actor)
        if not self.over(buffer.written, actor):
            raise Unordered(f"{actor} reads {buffer.name} and nothing makes it wait for {buffer.written[0]} to fill it")
        buffer.reads.append(step)

    def write(self, buffer: Buffer, actor: str, unit: str | None) -> None:
        self._refuse_freed(buffer, f"{actor} fills")
        step = self.step(actor)
        self._refuse_unordered(buffer, actor, f"{actor} fills")
        buffer.written, buffer.reads, buffer.unit = step, [], unit

    def make(self, memory: torch.Tensor, actor: str, kind: str) -> Buffer:
        """Steps like a write: the allocator hands out memory that work queued on its stream may still be using."""
        buffer = Buffer(f"{kind} {len(self.buffers)}", memory, self.step(actor))
        self.buffers[memory.data_ptr()] = buffer
        return buffer

    def free(self, buffer: Buffer) -> None:
        """The memory may go to whatever the compute stream does next."""
        self._refuse_freed(buffer, "host frees")
        self.step(COMPUTE)
        self._refuse_unordered(buffer, COMPUTE, "host frees")
        buffer.freed = True
        buffer.memory.fill_(255)

    def buffer_of(self, tensor: torch.Tensor) -> Buffer | None:
        return self.buffers.get(tensor.untyped_storage().data_ptr())

    @property
    def num_bytes(self) -> int:
        return sum(b.memory.numel() for b in self.buffers.values() if not b.freed and b.name.startswith("slot"))

    def _refuse_freed(self, buffer: Buffer, action: str) -> None:
        if buffer.freed:
            raise Unordered(f"{action} {buffer.name}, which was freed")

    def _refuse_unordered(self, buffer: Buffer, actor: str, action: str) -> None:
        for step in (buffer.written, *buffer.reads):
            if not self.over(step, actor):
                raise Unordered(f"{action} {buffer.name} ({buffer.unit}), and {step[0]} may still be using it")

    @contextmanager
    def computing(self, units: Mapping[str, str]) -> Iterator[None]:
        """Meanwhile every kernel is a step of the compute stream; `units` tells the unit of each weight."""
        with _Kernels(self, units):
            yield


class _Kernels(TorchDispatchMode):
    def __init__(self, simulation: Simulation, units: Mapping[str, str]) -> None:
        super().__init__()
        self.simulation, self.units = simulation, units

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in (leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, torch.Tensor)):
            buffer = self.simulation.buffer_of(tensor)
            if buffer is None or self.simulation.actor != HOST:
                continue
            name = vars(tensor).get("_true_weight", (None,))[0]
            if name is not None and self.units[name] != buffer.unit:
                raise Unordered(f"compute reads {name} from {buffer.name}, which holds {buffer.unit}")
            if any(tensor is written for written in _written(func, args, kwargs or {})):
                self.simulation.write(buffer, COMPUTE, buffer.unit)
            elif not func.is_view:
                self.simulation.read(buffer, COMPUTE)
        return func(*args, **(kwargs or {}))


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """The tensors that an operator writes into."""
    arguments = func._schema.arguments
    given = [*zip(arguments, args, strict=False), *((a, kwargs[a.name]) for a in arguments if a.name in kwargs)]
    return [value for argument, value in given if argument.alias_info is not None and argument.alias_info.is_write]


class Event:
    def __init__(self, simulation: Simulation, past: Clock) -> None:
        self.simulation, self.past = simulation, past

    def synchronize(self) -> None:
        self.simulation.join(self.simulation.actor, self.past)


class Stream:
    def __init__(self, simulation: Simulation, name: str) -> None:
        self.simulation, self.name = simulation, name

    def record_event(self) -> Event:
        self.simulation.step(self.name)
        return Event(self.simulation, dict(self.simulation.clocks[self.name]))

    def wait_event(self, event: Event) -> None:
        self.simulation.step(self.name)
        self.simulation.join(self.name, event.past)


class Thread:
    """An executor of one thread: a job runs at once, or as late as it can (when someone asks for its result)."""

    def __init__(self, simulation: Simulation, late: bool) -> None:
        self.simulation, self.late = simulation, late
        self.queue: list[tuple[Job, Clock, Callable[[], Any]]] = []

    def submit(self, function: Callable[..., Any], *args: Any) -> "Job":
        job = Job(self)
        self.queue.append((job, dict(self.simulation.clocks[self.simulation.actor]), lambda: function(*args)))
        if not self.late:
            self.run_until(job)
        return job

    def run_until(self, last: "Job") -> None:
        """In the order of submission, as one thread does."""
        if self.simulation.actor == THREAD:
            return
        while self.queue and not Future.done(last):
            job, past, function = self.queue.pop(0)
            if job.set_running_or_notify_cancel():
                self._run(job, past, function)

    def _run(self, job: "Job", past: Clock, function: Callable[[], Any]) -> None:
        self.simulation.actor = THREAD
        self.simulation.join(THREAD, past)
        try:
            job.set_result(function())
        except Exception as error:
            job.set_exception(error)
            if isinstance(error, Unordered):  # also where nobody asks for the result
                raise
        finally:
            self.simulation.actor = HOST
        job.past = dict(self.simulation.clocks[THREAD])

    def shutdown(self) -> None:
        while self.queue:
            self.run_until(self.queue[-1][0])


class Job(Future[Any]):
    def __init__(self, thread: Thread) -> None:
        super().__init__()
        self.thread = thread
        self.past: Clock = {}

    def result(self, timeout: float | None = None) -> Any:
        self.thread.run_until(self)
        self.thread.simulation.join(self.thread.simulation.actor, self.past)
        return super().result(timeout=0)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self.thread.run_until(self)
        return super().exception(timeout=0)


class SimulatedEngine(StreamEngine):
    """`page_locked=False` sends what the store could show through the staging buffers too."""

    def __init__(self, simulation: Simulation, *, page_locked: bool = True, late: bool = False) -> None:
        self.simulation, self.page_locked, self.late = simulation, page_locked, late
        self.streams = {name: Stream(simulation, name) for name in (COMPUTE, COPIES)}
        self.unit: str | None = None
        super().__init__(torch.device("cpu", 0))
        self.device = torch.device("cpu")

    def empty(self, num_bytes: int) -> torch.Tensor:
        with _disable_current_modes():
            memory = super().empty(num_bytes)
        self.simulation.make(memory, COMPUTE, "slot")
        capacity = self.simulation.capacity
        if capacity is not None and self.simulation.num_bytes > capacity:
            raise Unordered(f"{self.simulation.num_bytes} bytes of slots, and the bound is {capacity}")
        return memory

    def free(self, buffer: torch.Tensor, after: Sequence[Mark]) -> None:
        super().free(buffer, after)
        with _disable_current_modes():
            if (simulated := self.simulation.buffer_of(buffer)) is not None:
                self.simulation.free(simulated)

    def _new_stream(self) -> Any:
        return self.streams[COPIES]

    def _new_thread(self) -> Any:
        return Thread(self.simulation, self.late)

    def _compute(self) -> Any:
        return self.streams[COMPUTE]

    def _is_page_locked(self, view: torch.Tensor) -> bool:
        return self.page_locked

    def _page_locked(self, num_bytes: int) -> torch.Tensor:
        with _disable_current_modes():
            memory = torch.empty(num_bytes, dtype=torch.uint8)
        self.simulation.make(memory, self.simulation.actor, "staging")
        return memory

    def _read(self, store: Store, unit: str, out: torch.Tensor, start: int) -> None:
        with _disable_current_modes():
            staging = self.simulation.buffer_of(out)
            assert staging is not None
            self.simulation.write(staging, self.simulation.actor, None)
            store.read(unit, out, start)
            staging.unit = unit

    def _transfer(self, source: torch.Tensor, target: torch.Tensor) -> None:
        with _disable_current_modes():
            staging, slot = self.simulation.buffer_of(source), self.simulation.buffer_of(target)
            if staging is not None:
                self.simulation.read(staging, COPIES)
            if slot is not None:
                self.simulation.write(slot, COPIES, staging.unit if staging else self.unit)
            target.copy_(source)

    def copy(
        self, store: Store, unit: str, buffer: torch.Tensor, after: Sequence[Mark], observer: Observer | None = None
    ) -> Mark:
        self.unit = unit
        return super().copy(store, unit, buffer, after, observer)
