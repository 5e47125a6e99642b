"""The copy engine for the CPU as the device."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

import torch

from offload.engines.engine import Mark, done, result_if_any, submit
from offload.stores.store import Store, fill_host
from weights.modes import normal_mode
from weights.observer import Observer


class ThreadEngine:
    """For the CPU as the device: a thread fills the buffers while the host computes.

    Compute is over when its call returns, so only copies need marks. One thread, because copies are wanted one after
    the other: two at once would share the bandwidth and both come late.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="offload")

    @property
    def staging_bytes(self) -> int:
        return 0  # the store reads straight into the slot

    def empty(self, num_bytes: int) -> torch.Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8, device=self.device)

    def mark(self) -> Mark:
        return done()

    def copy(
        self, store: Store, unit: str, buffer: torch.Tensor, after: Sequence[Mark], observer: Observer | None = None
    ) -> Mark:
        for mark in after:
            mark.cancel()
        return submit(self._threads, store, _fill_in_order, store, unit, buffer, after, observer)

    def wait(self, mark: Mark) -> None:
        mark.result()

    def free(self, buffer: torch.Tensor, after: Sequence[Mark]) -> None:
        for mark in after:  # the thread holds on to the buffer for as long as it writes
            result_if_any(mark)

    def close(self) -> None:
        self._threads.shutdown()


def _fill_in_order(
    store: Store, unit: str, buffer: torch.Tensor, after: Sequence[Mark], observer: Observer | None
) -> None:
    for mark in after:
        result_if_any(mark)
    began, num_bytes = perf_counter(), store.packings[unit].num_bytes
    with normal_mode():
        fill_host(store, unit, buffer[:num_bytes])
    if observer is not None:
        observer.tell("prefetch", unit, began, perf_counter(), num_bytes)
