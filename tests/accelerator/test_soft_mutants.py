"""Each wait of the offloader is needed: without it, the software accelerator reports what is no longer ordered."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from offload import Offloaded, offload
from offload.engines.stream import StreamEngine
from tests.accelerator import soft
from tests.offload.memory_store import MemoryStore
from tests.offload.offload_models import Stack, example
from tests.offload.test_schedule_faults import (
    no_wait_before_free,
    no_wait_before_reuse,
    no_wait_before_the_first_copy,
    no_wait_before_use,
    reuse_waits_for_the_last_copy_only,
    staging_is_refilled_at_once,
)
from tests.ranks import World, on_ranks

UNORDERED, FREED, TOUCHED = (
    "nothing orders these two",
    "memory was freed, and its next owner may have it, while it is still in use",
    "the host touches page-locked memory that a copy is using",
)


def a_copy_waits_for_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(StreamEngine, "_wait_for", lambda engine, after: None)


def the_event_comes_before_the_copy(patch: pytest.MonkeyPatch) -> None:
    def upload(engine: StreamEngine, source: torch.Tensor, target: torch.Tensor) -> Any:
        event = engine._copies.record_event()
        engine._transfer(source, target)
        return event

    patch.setattr(StreamEngine, "_upload", upload)


def the_wrong_stream_waits(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(StreamEngine, "wait", lambda engine, mark: engine._copies.wait_event(mark.result()))


def the_wrong_stream_copies(patch: pytest.MonkeyPatch) -> None:
    """Then the event of the copies' stream says nothing of the copy."""
    patch.setattr(StreamEngine, "_transfer", lambda engine, source, target: target.copy_(source, non_blocking=True))


def the_host_overwrites_what_is_copied(patch: pytest.MonkeyPatch) -> None:
    """As a store would that is written while it is in use; with the same bytes, so that only the order tells."""

    def upload(engine: StreamEngine, source: torch.Tensor, target: torch.Tensor) -> Any:
        engine._transfer(source, target)
        event = engine._copies.record_event()
        source.copy_(source.clone())
        return event

    patch.setattr(StreamEngine, "_upload", upload)


# What is left out, whether the units are page-locked or staged, and what is reported.
MUTANTS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str, str]] = {
    "before use": (no_wait_before_use, "page-locked", UNORDERED),
    "before use, staged": (no_wait_before_use, "staged", UNORDERED),
    "before refill": (a_copy_waits_for_nothing, "page-locked", UNORDERED),
    "before refill, staged": (a_copy_waits_for_nothing, "staged", UNORDERED),
    "before refill, for compute": (reuse_waits_for_the_last_copy_only, "page-locked", UNORDERED),
    "before free": (no_wait_before_free, "page-locked", FREED),
    "staging": (staging_is_refilled_at_once, "staged", TOUCHED),
    "first copy": (no_wait_before_the_first_copy, "page-locked", UNORDERED),
    "release": (no_wait_before_reuse, "page-locked", UNORDERED),
    "event before the copy": (the_event_comes_before_the_copy, "page-locked", UNORDERED),
    "event before the copy, staged": (the_event_comes_before_the_copy, "staged", UNORDERED),
    "wrong stream": (the_wrong_stream_waits, "page-locked", UNORDERED),
    "wrong stream, staged": (the_wrong_stream_copies, "staged", TOUCHED),
    "host overwrite": (the_host_overwrites_what_is_copied, "page-locked", TOUCHED),
}


@pytest.mark.parametrize("window", [2, 3])
@pytest.mark.parametrize("mutant", MUTANTS)
@on_ranks(1, soft=True)
def test_a_missing_wait_is_reported(world: World, mutant: str, window: int) -> None:
    leave_out, kind, message = MUTANTS[mutant]
    assert steps_and_an_edit(world, kind, window) == [], "right as it is"
    soft.end_everything()
    with pytest.MonkeyPatch.context() as patch:
        leave_out(patch)
        found = steps_and_an_edit(world, kind, window)
    assert any(message in report for report in found), found
    soft.end_everything()


def steps_and_an_edit(world: World, kind: str, window: int) -> list[str]:
    """Three steps, the end of the stage, an edit, and one more step; returns what was reported."""
    model = Stack()
    store = MemoryStore(model, views=kind == "page-locked")
    store.bytes = {unit: data.pin_memory() for unit, data in store.bytes.items()}
    with torch.no_grad():
        x = example().to(world.device)
        offloaded: Offloaded = offload(model, store, device=world.device, window=window)
        for _ in range(3):
            model(x)
        offloaded.end()
        torch.empty(64, device=world.device)  # may have the memory of the ring
        model(x)
        offloaded.edit({})
        model(x)
        offloaded.remove()
        del x
    return soft.reports()
