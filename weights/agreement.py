"""How ranks agree: what they tell each other on the host, and what they do where one of them fails.

Each function takes the group of the ranks that take part (gloo, to work beside the traffic of weights); None is this
process alone. All of them are collectives over the group.
"""

import os
import pickle
import socket
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

_T = TypeVar("_T")
Group = dist.ProcessGroup | None


def rank_in(group: Group) -> int:
    return dist.get_rank(group) if group else 0


def size_of(group: Group) -> int:
    return dist.get_world_size(group) if group else 1


def ranks_of(group: Group) -> Sequence[int]:
    """The members by their rank in the world."""
    return dist.get_process_group_ranks(group) if group else [0]


def gather(value: _T, group: Group) -> list[_T]:
    """The values of all ranks, in the group's order, on every rank."""
    if size_of(group) == 1:
        return [value]
    values: list[Any] = [None] * size_of(group)
    dist.all_gather_object(values, value, group=group)
    return values


def gather_int(value: int, group: Group) -> list[int]:
    """`gather` of one number (64 bits), in one small collective without pickling."""
    if size_of(group) == 1:
        return [value]
    values = [torch.empty(1, dtype=torch.int64) for _ in range(size_of(group))]
    dist.all_gather(values, torch.tensor([value]), group=group)
    return [int(other) for other in values]


def from_first(value: _T | None, group: Group) -> _T:
    """The first rank's value, on every rank."""
    values: list[Any] = [value]
    if size_of(group) > 1:
        dist.broadcast_object_list(values, group=group, group_src=0)
    return values[0]


def on_all_ranks(step: Callable[[], _T], group: Group) -> _T:
    """Run a step without collectives on every rank.

    Where it raises on any, all raise the first such rank's error: none goes on to wait for one that will not come.
    """
    if size_of(group) == 1:
        return step()
    own_error: Exception | None = None
    try:
        result = step()
    except Exception as error:  # of any kind: the others wait below, and have to hear of it
        own_error = error
    errors = gather(own_error and _sendable(own_error), group)
    for rank, problem in enumerate(errors):
        if problem is not None:
            raise problem from (own_error if rank == rank_in(group) else None)
    return result


def on_first_rank(step: Callable[[], _T], group: Group) -> _T:
    """Run a step on the first rank only, and return its result, or raise its error, on every rank."""
    return from_first(on_all_ranks(lambda: step() if rank_in(group) == 0 else None, group), group)


def this_node() -> str:
    """Where a process id means the same and memory can be mapped: one boot of one kernel, one namespace of processes.

    Host names and LOCAL_RANK only guess at it: containers may share or change the one, a launcher need not set the
    other. Off Linux, the host's name.
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return socket.gethostname()


def node_group() -> Group:
    """This rank's group of the ranks that can map the same memory; None without a process group.

    A collective over all ranks. A rank opens another's memory through /proc/<pid>/fd; ranks in containers of their own
    get a copy each.
    """
    if not dist.is_initialized():
        return None
    nodes = gather(this_node(), dist.group.WORLD)
    return group_of([[rank for rank, other in enumerate(nodes) if other == node] for node in dict.fromkeys(nodes)])


def group_of(groups: Sequence[Sequence[int]], timeout: timedelta | None = None) -> Group:
    """This rank's of some groups that together are the world."""
    group, _ = dist.new_subgroups_by_enumeration([list(ranks) for ranks in groups], timeout=timeout, backend="gloo")
    return group


def _sendable(error: Exception) -> Exception:
    """The error itself, or one that says the same where it cannot be sent."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # a library's error may raise anything while it is taken apart and put together
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
