"""The world this process is one rank of, how its ranks agree, and the teams that they make requests in."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState

from runner.errors import UserError
from weights.agreement import Group, from_first, gather, on_all_ranks

T = TypeVar("T")


@dataclass(frozen=True)
class Team:
    """The ranks that make one request together: always one rank so far. `count` teams are the world."""

    index: int
    count: int
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class World:
    """A rank among `size` ranks, and the device it computes on.

    `control` is a gloo group for what the ranks tell each other: on the host, beside the traffic of weights. A world
    of one needs none.
    """

    rank: int
    size: int
    device: torch.device
    control: Group = None

    @property
    def team(self) -> Team:
        return Team(self.rank, self.size, (self.rank,))

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in rank order, on every rank. Collective."""
        return gather(value, self.control)

    def check_same(self, value: object, what: str) -> None:
        """Raise UserError on every rank where `value` is not the same on all of them. Collective."""
        values = self.gather(hashlib.sha256(repr(value).encode()).hexdigest())
        differing = [rank for rank, other in enumerate(values) if other != values[0]]
        if differing:
            raise UserError(f"{what} is not the same on all ranks: rank {differing[0]} differs from rank 0")

    def from_rank_0(self, value: T | None) -> T:
        """Rank 0's value, on every rank. Collective."""
        return from_first(value, self.control)

    def agreed(self, action: Callable[[], T]) -> T:
        """Run `action` on every rank; an error on any of them is raised on all, instead of a hang. Collective."""
        return on_all_ranks(action, self.control)


@contextmanager
def joined_world(timeout_seconds: float = 600.0) -> Iterator[World]:
    """The process group that torchrun describes in the environment; a plain `python` is a world of one.

    A collective that waits longer than `timeout_seconds` for another rank raises.
    """
    # Without the hint, accelerate makes a world of one of CPU ranks.
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(seconds=timeout_seconds))
    if not dist.is_initialized():  # one rank shards too, which takes a process group
        dist.init_process_group(
            _backend(state.device), store=dist.HashStore(), rank=state.process_index, world_size=state.num_processes
        )
    control = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_seconds))
    try:
        yield World(state.process_index, state.num_processes, state.device, control)
    finally:
        dist.destroy_process_group()


def _backend(device: torch.device) -> str:
    own = dist.get_default_backend_for_device(device)
    return own if device.type == "cpu" else f"cpu:gloo,{device.type}:{own}"
