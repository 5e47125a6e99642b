"""Page-locking on a runtime that keeps CUDA's rules: what is locked, what is rolled back, and which error stays."""

import gc
import logging
import mmap
from collections.abc import Iterator

import pytest
import torch

from offload.stores import shared_memory
from offload.stores.host import HostStore
from offload.stores.page_locks import CHUNK_BYTES, CudaRuntime, PageLocks, chunks
from offload.stores.shared_memory import SharedMemory
from tests.offload.engines.test_copy_engine import accelerator

PAGE = mmap.PAGESIZE
OUT_OF_MEMORY, INVALID, ALREADY = 2, 1, 712


class StrictRuntime:
    """What the CUDA runtime does: pages are locked once, are given back by where they began, and the error of a failed
    call stays until someone asks. `max_bytes` may be locked in all, and `largest` in one call."""

    def __init__(self, max_bytes: int = 2**40, largest: int = 2**40) -> None:
        self.max_bytes, self.largest = max_bytes, largest
        self.locked: dict[int, int] = {}
        self.last_error = 0
        self.calls: list[str] = []
        self.copies_under_way = False

    def register(self, address: int, num_bytes: int) -> int:
        self.calls.append("register")
        first, end = address // PAGE, -(-(address + num_bytes) // PAGE)
        overlap = any(first < -(-(a + n) // PAGE) and a // PAGE < end for a, n in self.locked.items())
        if overlap or num_bytes == 0:
            return self._fail(ALREADY if overlap else INVALID)
        if num_bytes > self.largest or sum(self.locked.values()) + num_bytes > self.max_bytes:
            return self._fail(OUT_OF_MEMORY)
        self.locked[address] = num_bytes
        return 0

    def unregister(self, address: int) -> int:
        self.calls.append("unregister")
        assert not self.copies_under_way, "the device still reads there"
        return 0 if self.locked.pop(address, None) else self._fail(INVALID)

    def error_string(self, error: int) -> str:
        return {OUT_OF_MEMORY: "out of memory", ALREADY: "already mapped", INVALID: "invalid argument"}[error]

    def clear_error(self) -> None:
        self.last_error = 0

    def synchronize(self) -> None:
        self.calls.append("synchronize")
        self.copies_under_way = False

    def run_kernel(self) -> None:
        error, self.last_error = self.last_error, 0
        assert not error, f"the next kernel raises {self.error_string(error)}"

    def _fail(self, error: int) -> int:
        self.last_error = error
        return error


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[StrictRuntime]:
    """In place of CUDA's, for devices that call themselves cuda."""
    found = StrictRuntime()
    monkeypatch.setattr(shared_memory, "runtime_of", lambda device: found if device.type == "cuda" else None)
    yield found
    found.run_kernel()


@pytest.mark.parametrize(
    ("sizes", "found"),
    [([], []), ([0, 0], []), ([3, 3, 3], [6, 3]), ([9, 1, 0, 5, 2], [9, 6, 2]), ([1, 12, 1], [1, 12, 1])],
)
def test_chunks_end_where_units_do(sizes: list[int], found: list[int]) -> None:
    assert chunks(sizes, limit=6) == found


def test_a_chunk_is_16_gib_at_most() -> None:
    gib = 2**30
    assert max(chunks([gib] * 40)) == CHUNK_BYTES == 16 * gib


def units(*sizes: int) -> dict[str, dict[str, torch.Tensor]]:
    return {f"blocks.{i}": {f"blocks.{i}.w": torch.ones(size, dtype=torch.uint8)} for i, size in enumerate(sizes)}


def host_store(*sizes: int) -> HostStore:
    tensors = units(*sizes)
    flat = {name: tensor for unit in tensors.values() for name, tensor in unit.items()}
    return HostStore.from_tensors(tensors, lambda: flat, device=torch.device("cuda"))


def test_a_stores_units_lie_whole_in_chunks_that_share_no_page(
    runtime: StrictRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_memory, "chunks", lambda sizes: chunks(sizes, 2 * PAGE))
    store = host_store(700, 5000, PAGE, 10, 9 * PAGE)
    assert len(runtime.locked) == 4
    for unit, packing in store.packings.items():
        start = store.view(unit).data_ptr()
        assert any(a <= start and start + packing.num_bytes <= a + n for a, n in runtime.locked.items()), unit
    store.close()
    assert not runtime.locked


@pytest.mark.parametrize("limits", [{"max_bytes": 5 * PAGE}, {"largest": 3 * PAGE}])
def test_where_one_chunk_fails_none_stays_and_the_next_kernel_runs(
    runtime: StrictRuntime, limits: dict[str, int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shared_memory, "chunks", lambda sizes: chunks(sizes, 2 * PAGE))
    vars(runtime).update(limits)
    store = host_store(PAGE, PAGE, 2 * PAGE, 4 * PAGE)
    runtime.run_kernel()
    assert not runtime.locked and runtime.calls.count("register") == 3
    assert f"part 3 of 3, {4 * PAGE} bytes: out of memory" in caplog.text
    assert bool((store.view("blocks.3") == 1).all()), "the weights are there all the same"
    store.close()


def test_it_is_unlocked_after_the_copies_that_are_under_way(runtime: StrictRuntime) -> None:
    store = host_store(PAGE)
    runtime.copies_under_way = True
    store.close()
    store.close()
    assert runtime.calls == ["register", "synchronize", "unregister"]


def test_memory_that_nobody_closed_is_unlocked_before_it_goes(
    runtime: StrictRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        memory = SharedMemory(4 * PAGE, None)
        memory.page_lock(torch.device("cuda"), [3 * PAGE, PAGE])
    assert "page-locked 0.00 GiB" in caplog.text and list(runtime.locked.values()) == [4 * PAGE]
    del memory
    gc.collect()
    assert not runtime.locked


def test_an_unlock_that_fails_does_not_fail_what_runs_next(runtime: StrictRuntime) -> None:
    locks = PageLocks(runtime)
    assert locks.lock(PAGE, [PAGE, PAGE]) is None
    del runtime.locked[PAGE]
    locks.unlock()
    assert not runtime.locked


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs cuda")
def test_cuda_itself_keeps_these_rules() -> None:
    device = accelerator()
    memory = SharedMemory(4 * PAGE, None)
    memory.page_lock(device, [2 * PAGE, 2 * PAGE])
    assert memory.bytes.is_pinned()
    again = PageLocks(CudaRuntime(device))
    reason = again.lock(memory.bytes.data_ptr(), [2 * PAGE])
    assert reason is not None and "part 1 of 1" in reason
    torch.ones(4, device=device).sum().item()  # the error is not left for it
    memory.close()
