"""The ranks that share one node's memory, and how they agree on what happened."""

import os
import pickle
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

_Result = TypeVar("_Result")


def node_group() -> dist.ProcessGroup | None:
    """This rank's group (gloo) of the ranks that can map the same memory; None without a process group.

    A collective over all ranks. LOCAL_RANK and host names only guess at it: a launcher need not set the one, and
    containers may share or change the other. What counts is one kernel (its boot id) and one PID namespace, for a rank
    opens another's memory through /proc/<pid>/fd; ranks in containers of their own get a copy each.
    """
    if not dist.is_initialized():
        return None
    nodes = [""] * dist.get_world_size()
    dist.all_gather_object(nodes, _node())
    ranks_of = {node: [rank for rank, other in enumerate(nodes) if other == node] for node in nodes}
    group, _ = dist.new_subgroups_by_enumeration(list(ranks_of.values()), backend="gloo")
    return group


def _node() -> str:
    if not Path("/proc/self/ns/pid").exists():  # not Linux
        return socket.gethostname()
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")


def local_rank(group: dist.ProcessGroup | None) -> int:
    return dist.get_rank(group) if group else 0


def local_size(group: dist.ProcessGroup | None) -> int:
    return dist.get_world_size(group) if group else 1


def on_all_ranks(step: Callable[[], _Result], group: dist.ProcessGroup | None) -> _Result:
    """Run a step without collectives on every rank of the group (None: this process alone).

    Where it raises on any, all raise the first such rank's error: none goes on to wait for one that will not come.
    """
    if group is None:
        return step()
    own_error = None
    try:
        result = step()
    except Exception as error:
        own_error = error
    errors: list[Exception | None] = [None] * local_size(group)
    dist.all_gather_object(errors, own_error and _sendable(own_error), group=group)
    for rank, problem in enumerate(errors):
        if problem:
            raise problem from (own_error if rank == local_rank(group) else None)
    return result


def on_first_rank(step: Callable[[], _Result], group: dist.ProcessGroup | None) -> _Result:
    """Run a step on the first rank only, and return its result, or raise its error, on every rank of the group."""
    result: list[Any] = [on_all_ranks(lambda: step() if local_rank(group) == 0 else None, group)]
    if group is not None:
        dist.broadcast_object_list(result, group=group, group_src=0)
    return result[0]


def _sendable(error: Exception) -> Exception:
    """The error itself, or one that says the same where it cannot be sent."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # a library's error may raise anything while it is taken apart and put together
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
