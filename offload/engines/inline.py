"""The copy engine of devices without a second stream."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

import torch

from offload.engines.engine import Mark, done, submit
from offload.stores.store import Store
from weights.modes import normal_mode
from weights.observer import Observer


class InlineEngine:
    """For a device with one queue only (mps): copies take their turn in it, in program order, and so need no marks.

    What the store must read, a thread reads ahead into host memory; the upload waits until the weights are needed. On
    such devices host and device are one memory: what is read ahead is there twice for a while.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="offload")

    @property
    def staging_bytes(self) -> int:
        return 0  # none is kept

    def empty(self, num_bytes: int) -> torch.Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8, device=self.device)

    def mark(self) -> Mark:
        return done([])

    def copy(
        self, store: Store, unit: str, buffer: torch.Tensor, after: Sequence[Mark], observer: Observer | None = None
    ) -> Mark:
        for mark in after:
            mark.cancel()
        target = buffer[: store.packings[unit].num_bytes]
        view = store.view(unit)
        if view is None:
            return submit(self._threads, store, _read_for, store, unit, target, observer)
        began = perf_counter()
        target.copy_(view)
        if observer is not None:
            observer.tell("prefetch", unit, began, perf_counter(), target.numel())
        return done([])

    def wait(self, mark: Mark) -> None:
        for target, host in mark.result():
            target.copy_(host)
        mark.result().clear()  # the upload took its turn; the host memory can go

    def free(self, buffer: torch.Tensor, after: Sequence[Mark]) -> None:
        for mark in after:
            mark.cancel()

    def close(self) -> None:
        self._threads.shutdown()


def _read_for(
    store: Store, unit: str, target: torch.Tensor, observer: Observer | None
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    began = perf_counter()
    with normal_mode():
        host = torch.empty(target.numel(), dtype=torch.uint8)
        store.read(unit, host)
    if observer is not None:
        observer.tell("prefetch", unit, began, perf_counter(), target.numel())
    return [(target, host)]
