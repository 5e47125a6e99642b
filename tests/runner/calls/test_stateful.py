"""What a component keeps from one call to the next is found on the live module."""

import torch
from torch import nn

from offload import offload
from runner.calls.stateful import state_of, what_changed
from tests.offload.memory_store import MemoryStore


class Counting(nn.Module):
    """Keeps how often it ran, if it is told to, beside a table that its checkpoint has."""

    table: torch.Tensor

    def __init__(self, counts: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.register_buffer("table", torch.zeros(4))
        self.register_buffer("count", torch.zeros(1), persistent=False)
        self.counts = counts

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.counts:
            self.count += 1
        return hidden_states * self.weight + self.table


class Blocks(nn.Module):
    def __init__(self, counts: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Counting(counts), Counting(counts)])

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return hidden_states


def _changed(module: nn.Module) -> str | None:
    before = state_of(module)
    with torch.no_grad():
        module(torch.ones(2, 4))
    return what_changed(before, state_of(module))


def test_a_buffer_that_a_call_writes_is_state() -> None:
    assert _changed(Blocks(counts=True)) == "count"
    assert _changed(Blocks(counts=False)) is None


def test_buffers_of_offloaded_blocks_are_looked_at_while_they_are_away() -> None:
    """As Sana-WM's blocks have one in their checkpoint: to ask how often it was written is to read it."""
    module = Blocks(counts=False)
    offload(module, MemoryStore(module), device=torch.device("cpu"))
    assert _changed(module) is None
