"""The ranks that torchrun started, where pytest itself runs on each: `torchrun ... -m pytest tests/distributed`.

Every rank collects the same tests in the same order, and runs those that fit the world's size. A test that starts
processes of its own is left out: it needs no torchrun.
"""

import os
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist


def given_size() -> int | None:
    """The number of ranks that torchrun started; None under a plain pytest."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else None


class GivenWorld:
    """The process group of torchrun's ranks. `control` carries what the ranks tell each other about the tests."""

    def __init__(self, timeout: timedelta) -> None:
        local, on_this_node = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
        on_gpu = torch.cuda.device_count() >= on_this_node
        self.device = torch.device("cuda", local) if on_gpu else torch.device("cpu")
        if on_gpu:
            torch.cuda.set_device(self.device)
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=timeout)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        # A rank that fails leaves the others in a collective until its timeout; they come here after that.
        self.control = dist.new_group(backend="gloo", timeout=3 * timeout)
        self.broken = False

    def shared(self, path: Path) -> Path:
        """Rank 0's path. On several nodes, TMPDIR must be a folder that all of them see."""
        paths = [path]
        dist.broadcast_object_list(paths, src=0, group=self.control)
        if not paths[0].is_dir():
            pytest.exit(f"{paths[0]} of rank 0 is not on this node; set TMPDIR to a folder that all nodes share")
        return paths[0]

    def run(self, function: Callable[[], None]) -> None:
        """Run it on every rank; one rank's failure is every rank's."""
        if self.broken:
            pytest.skip("an earlier test failed: the ranks may have stopped at different collectives")
        failure = None
        try:
            function()
        except BaseException:
            failure = traceback.format_exc()
        failures: list[Any] = [None] * self.size
        dist.all_gather_object(failures, failure, group=self.control)
        told = [f"rank {rank} of {self.size}: {failure}" for rank, failure in enumerate(failures) if failure]
        if told:
            self.broken = True
            pytest.fail("\n".join(told), pytrace=False)

    def close(self) -> None:
        dist.destroy_process_group()
