"""The world this process is one rank of, and how its ranks agree."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState

from runner.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """A rank among `size` ranks, and the device it computes on. One rank has no process group."""

    rank: int
    size: int
    device: torch.device

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in rank order, on every rank. Collective."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def agreed(self, action: Callable[[], T]) -> T:
        """Run `action` on every rank; a UserError on any of them is raised on all, instead of a hang. Collective."""
        result, failure = None, None
        try:
            result = action()
        except UserError as error:
            failure = str(error)
        for message in self.gather(failure):
            if message is not None:
                raise UserError(message)
        return result  # type: ignore[return-value]


@contextmanager
def joined_world() -> Iterator[World]:
    """The process group that torchrun describes in the environment; a plain `python` is a world of one."""
    # Without the hint, accelerate makes a world of one of CPU ranks.
    state = PartialState(cpu=not torch.accelerator.is_available())
    try:
        yield World(state.process_index, state.num_processes, state.device)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
