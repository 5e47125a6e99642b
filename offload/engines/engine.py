"""How bytes get from a store to the device, beside the compute and in order with it.

[Note: order] Work on a device is queued, so the code that frees or refills a buffer runs long before the kernels that
read it. Three waits keep a buffer right, and each is a mark handed to the engine:
  before use    `wait(copied)`: what is computed from now on runs after the copy;
  before reuse  `copy(after=[released, copied])`: a copy runs after the last reader of the buffer and its last writer;
  before free   `free(after=[released, copied])`: no reader or writer is left when the allocator hands the memory on.
A buffer's first copy waits too, for a mark made after `empty`: the allocator hands out memory that kernels still queued
on the compute stream may be using.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from traceback import clear_frames
from typing import Any, Protocol

import torch

from offload.stores.store import Store
from weights.observer import Observer

# A point in the work of host and device. Done once the host has issued that work; the result is the engine's own. A
# copy that failed raises from it, and one that has not begun may be cancelled.
Mark = Future[Any]


class CopyEngine(Protocol):
    """Copies for one device. May serve several components, from one thread at a time, in normal mode."""

    @property
    def staging_bytes(self) -> int:
        """Of host memory, at most, on the way from a store that must be read to the device."""

    def empty(self, num_bytes: int) -> torch.Tensor:
        """A buffer on the device, uint8 (num_bytes,), aligned as the allocator does."""

    def mark(self) -> Mark:
        """All that was computed until now."""

    def copy(
        self, store: Store, unit: str, buffer: torch.Tensor, after: Sequence[Mark], observer: Observer | None = None
    ) -> Mark:
        """Start to fill the buffer with the unit, after `after`. Copies among them that have not begun need not. The
        observer is told when the bytes went."""

    def wait(self, mark: Mark) -> None:
        """What is computed from now on runs after `mark`. Raises StoreError where its copy failed."""

    def free(self, buffer: torch.Tensor, after: Sequence[Mark]) -> None:
        """The caller lets go of the buffer; its memory may be used again after `after`."""

    def close(self) -> None:
        """Let go of threads and staging memory. Idempotent; copies that are under way end first."""


def submit(threads: Executor, store: Store, copy: Callable[..., Any], *arguments: Any) -> Mark:
    """Have a thread make the copy. One whose unit several ranks read together is never cancelled: it might have begun
    on one of them, which then waits for the others.

    Once the mark is done, or cancelled, nothing here holds the buffer that is among the arguments: whoever frees it
    waits for no more than the mark, and its memory is to be the next component's then. An executor keeps what it was
    given until its thread has put the job away; that of a cancelled one until it gets to it.
    """
    held = [arguments]

    def run() -> Any:
        try:
            return copy(*held.pop())
        except BaseException as error:
            clear_frames(error.__traceback__)  # whoever sees the error would hold the buffer
            raise

    if store.readers is None:
        mark: Mark = threads.submit(run)
        mark.add_done_callback(lambda _: held.clear())  # where it was cancelled, before `cancel` returns
        return mark
    mark = Future()
    mark.set_running_or_notify_cancel()

    def run_and_tell() -> None:
        try:
            mark.set_result(run())
        except BaseException as error:  # as an executor does: whoever waits raises it
            mark.set_exception(error)

    threads.submit(run_and_tell)
    return mark


def done(result: Any = None) -> Mark:
    mark: Mark = Future()
    mark.set_result(result)
    return mark


def result_if_any(mark: Mark) -> Any:
    """Cancel the copy where it has not begun, else wait for it; None where it was cancelled or failed.

    For a copy that nobody will use: whoever asks for its unit again will see the error again.
    """
    return None if mark.cancel() or mark.exception() is not None else mark.result()
