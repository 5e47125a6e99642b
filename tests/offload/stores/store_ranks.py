"""Runs a function on the ranks of one node, in processes of their own, and tells how each ended."""

import multiprocessing
import signal
import tempfile
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist

TIMEOUT_S = 60


class Ranks:
    """`function(rank, *arguments)` on `size` gloo ranks. It must be a module's own function, to be found there.

    The ranks are forked from a server that has torch imported: it takes milliseconds, and the threads and locks of
    pytest's own process are not copied into them.
    """

    def __init__(self, size: int, function: Callable[..., Any], *arguments: Any) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch", "torch.distributed", "offload.stores.host"])
        meeting_point = Path(tempfile.mkdtemp()) / "ranks"
        self._ranks = []
        for rank in range(size):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(
                target=_serve, args=(rank, size, meeting_point, theirs, function, arguments), daemon=True
            )
            process.start()
            theirs.close()
            self._ranks.append((process, ours))

    def outcomes(self) -> list[Any]:
        """What each rank returned or raised; a negative number: the signal that ended it."""
        return [self._outcome(process, connection) for process, connection in self._ranks]

    def kill(self) -> None:
        for process, _ in self._ranks:
            process.kill()
            process.join(TIMEOUT_S)
            assert process.exitcode == -signal.SIGKILL

    def pids(self) -> list[int]:
        return [process.pid for process, _ in self._ranks]

    def _outcome(self, process: Any, connection: Connection) -> Any:
        assert connection.poll(TIMEOUT_S), "a rank hangs"
        try:
            return connection.recv()
        except EOFError:
            process.join(TIMEOUT_S)
            return process.exitcode


def on_ranks(size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    return Ranks(size, function, *arguments).outcomes()


def _serve(
    rank: int,
    size: int,
    meeting_point: Path,
    connection: Connection,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{meeting_point}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=TIMEOUT_S),
    )
    try:
        outcome = function(rank, *arguments)
    except Exception as error:
        outcome = error
    connection.send(outcome)
    dist.barrier()
    dist.destroy_process_group()


def proportional_set_size(name: str) -> int:
    """Bytes (PSS: each page divided by the number of processes that map it) of our mappings of files of that name."""
    return sum(mapped.pss for mapped in psutil.Process().memory_maps() if name in mapped.path)
