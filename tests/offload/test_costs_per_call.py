"""What a step costs the host after the first of a stage: no new views of weights, and no wait for the device."""

import pytest
import torch

import offload.ring
from offload import offload as offloaded_in
from offload.stores.packing import Packing, views
from tests.offload.engines.simulated_engine import HOST, Event, SimulatedEngine, Simulation
from tests.offload.memory_store import MemoryStore
from tests.offload.offload_models import Stack, example

CPU = torch.device("cpu")


@torch.no_grad()
@pytest.mark.parametrize("window", [1, 2, "all"])
def test_views_of_a_slot_are_made_once_for_each_unit(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Packing] = []

    def counted(packing: Packing, buffer: torch.Tensor) -> dict[str, torch.Tensor]:
        made.append(packing)
        return views(packing, buffer)

    monkeypatch.setattr(offload.ring, "views", counted)
    model = Stack()
    offloaded = offloaded_in(model, MemoryStore(model), device=CPU, window=window)
    for _ in range(4):  # with two slots, each of the five blocks comes into either
        model(example())
    num_made = len(made)
    for _ in range(6):
        model(example())
    assert len(made) == num_made
    offloaded.end()


@torch.no_grad()
@pytest.mark.parametrize("page_locked", [True, False])
def test_the_host_never_waits_for_the_device_in_a_step(page_locked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the thread does, before it fills what it has sent up."""
    waits: list[str] = []
    synchronize = Event.synchronize

    def noted(event: Event) -> None:
        waits.append(event.simulation.actor)
        synchronize(event)

    monkeypatch.setattr(Event, "synchronize", noted)
    model = Stack()
    engine = SimulatedEngine(Simulation(), page_locked=page_locked)
    offloaded = offloaded_in(model, MemoryStore(model, views=page_locked), device=CPU, engine=engine)
    for _ in range(3):
        model(example())
    offloaded.end()
    assert HOST not in waits
    assert page_locked or waits, "the thread waits, so this test would see a wait"
