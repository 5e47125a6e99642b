"""The copy engine of devices with streams and events: cuda, xpu, npu and whatever else torch.accelerator drives."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Any

import torch

from offload.engines.engine import Mark, done, result_if_any, submit
from offload.stores.store import Store
from weights.modes import normal_mode
from weights.observer import Moment, Observer

# Page-locked memory that is asked for as a power of two is not rounded up to the next one by torch's allocator.
STAGING_BYTES = 32 * 2**20
NUM_STAGING_BUFFERS = 2  # one is filled from the files while the other goes up


def has_streams(device: torch.device) -> bool:
    """Whether torch offers a stream of its own for copies on this device; asked of torch, not of a list of names."""
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None or accelerator.type != device.type:
        return False
    try:
        return torch.Stream(device=device) != torch.accelerator.current_stream(device)
    except RuntimeError:  # torch's answer for a backend that makes no streams
        return False


class StreamEngine:
    """Copies on a stream of their own; the result of a mark is an event. See [Note: order] in engine.py.

    Buffers come from the compute stream's pool (the current stream's: a component's stage runs on one stream), so that
    activations can have their memory when the ring is gone. From page-locked memory the host only queues the copy; what
    is not page-locked, or must be read, a thread brings piece by piece through two page-locked staging buffers. They
    are made when the first such unit comes, and are all the host memory that this takes, for all components together.
    """

    def __init__(self, device: torch.device) -> None:
        index = torch.accelerator.current_device_index() if device.index is None else device.index
        self.device = torch.device(device.type, index)
        self._copies = self._new_stream()
        self._staging = [_Staging() for _ in range(NUM_STAGING_BUFFERS)]
        # Staging buffers are used in turn, without locks: there is one thread.
        self._threads = self._new_thread()

    def empty(self, num_bytes: int) -> torch.Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8, device=self.device)

    def mark(self) -> Mark:
        return done(self._compute().record_event())

    def copy(
        self, store: Store, unit: str, buffer: torch.Tensor, after: Sequence[Mark], observer: Observer | None = None
    ) -> Mark:
        target = buffer[: store.packings[unit].num_bytes]
        view = store.view(unit)
        if view is not None and self._is_page_locked(view):
            self._wait_for(after)
            began = None if observer is None else observer.now(self._copies)
            uploaded = self._upload(view, target)
            self._tell(observer, unit, began, target)
            return done(uploaded)
        for mark in after:
            mark.cancel()
        return submit(self._threads, store, self._read_and_upload, store, unit, target, after, observer)

    def wait(self, mark: Mark) -> None:
        self._compute().wait_event(mark.result())

    def free(self, buffer: torch.Tensor, after: Sequence[Mark]) -> None:
        # The allocator hands the memory to later work of the compute stream: that is what must wait.
        for event in filter(None, map(result_if_any, after)):
            self._compute().wait_event(event)

    def close(self) -> None:
        self._threads.shutdown()
        for staging in self._staging:
            self._finish(staging)
            staging.buffer = None

    @property
    def staging_bytes(self) -> int:
        return NUM_STAGING_BUFFERS * STAGING_BYTES

    def _tell(self, observer: Observer | None, unit: str, began: Moment | None, target: torch.Tensor) -> None:
        if observer is not None and began is not None:
            observer.tell("prefetch", unit, began, observer.now(self._copies), target.numel())

    def _read_and_upload(
        self, store: Store, unit: str, target: torch.Tensor, after: Sequence[Mark], observer: Observer | None
    ) -> Any:
        began = perf_counter()
        with normal_mode():
            try:
                for start in range(0, max(target.numel(), 1), STAGING_BYTES):
                    piece = target[start : start + STAGING_BYTES]
                    uploaded = self._stage(store, unit, start, piece, after if start == 0 else ())
            except (
                BaseException
            ):  # of any kind: a copy without a mark is awaited by nobody, and its pieces are under way
                for staging in self._staging:
                    self._finish(staging)
                raise
        self._tell(observer, unit, began, target)
        return uploaded

    def _stage(self, store: Store, unit: str, start: int, piece: torch.Tensor, after: Sequence[Mark]) -> Any:
        staging = self._staging.pop(0)
        self._staging.append(staging)
        self._finish(staging)
        if staging.buffer is None:
            staging.buffer = self._page_locked(STAGING_BYTES)
        source = staging.buffer[: piece.numel()]
        self._read(store, unit, source, start)
        self._wait_for(after)
        staging.uploaded = self._upload(source, piece)
        return staging.uploaded

    def _finish(self, staging: "_Staging") -> None:
        """Wait on the host until the staging buffer's last upload is over: what fills it next is the host."""
        if staging.uploaded is not None:
            staging.uploaded.synchronize()
            staging.uploaded = None

    def _wait_for(self, after: Sequence[Mark]) -> None:
        for event in filter(None, map(result_if_any, after)):
            self._copies.wait_event(event)

    def _upload(self, source: torch.Tensor, target: torch.Tensor) -> Any:
        self._transfer(source, target)
        return self._copies.record_event()

    # What a simulated device does otherwise.

    def _new_stream(self) -> Any:
        return torch.Stream(device=self.device)

    def _new_thread(self) -> Any:
        # A new thread starts on device 0; page-locking there would make a context on another rank's device.
        return ThreadPoolExecutor(1, "offload", torch.accelerator.set_device_index, (self.device.index,))

    def _compute(self) -> Any:
        return torch.accelerator.current_stream(self.device)

    def _is_page_locked(self, view: torch.Tensor) -> bool:
        return view.is_pinned()

    def _page_locked(self, num_bytes: int) -> torch.Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)

    def _read(self, store: Store, unit: str, out: torch.Tensor, start: int) -> None:
        store.read(unit, out, start)

    def _transfer(self, source: torch.Tensor, target: torch.Tensor) -> None:
        with self._copies:
            target.copy_(source, non_blocking=True)


class _Staging:
    """Page-locked host memory on the way to the device, and the event behind its last upload."""

    def __init__(self) -> None:
        self.buffer: torch.Tensor | None = None
        self.uploaded: Any = None
