"""Tests that run on every rank of a small world: `@on_ranks(1, 2)` makes one pytest test a world size.

A world is started once a session and serves every test of its size, because starting a rank and importing diffusers
costs seconds. After a failure it is thrown away: its ranks may have stopped at different collectives. Under torchrun
the world is the one that it started: see tests/given_world.py.
"""

import faulthandler
import gc
import importlib.util
import inspect
import os
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.accelerator.soft import destroy_group, have_inference_mode, nothing_unordered, register
from tests.given_world import GivenWorld, given_size
from tests.processes import abort

TIMEOUT = timedelta(seconds=60)
# The longest test takes a minute on two cores. What waits for no collective has no timeout of its own.
LONGEST_S = 300
# Where the stock pipeline is called on a rank: on the rank's own device, whose kernels decide the bits. The software
# accelerator has the CPU's.
ORACLE_DEVICE = "ORACLE_DEVICE"


@dataclass(frozen=True)
class Rank:
    """One process of a world. `stacks`: where it writes what its threads do when it is aborted."""

    process: mp.Process
    connection: Connection
    stacks: Path

    def answer(self, end: float) -> str | None:
        """Of a test, until `end`: the failure."""
        try:
            if self.connection.poll(max(0.0, end - time.monotonic())):
                return self.connection.recv()
        except EOFError:
            self.process.join(timeout=10)
            if self.process.exitcode is not None:
                return f"died with exit code {self.process.exitcode}"
        assert self.process.pid is not None
        abort([self.process.pid])
        return f"not done after {LONGEST_S} s, or stuck in its exit:\n{self.stacks.read_text()}"


@dataclass(frozen=True)
class World:
    """What a test sees on each rank. `tmp_path` is one folder for all ranks; `control` is a gloo group of all."""

    rank: int
    size: int
    device: torch.device
    tmp_path: Path
    control: dist.ProcessGroup | None = None


def on_ranks(*sizes: int, soft: bool = False) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run a test function as `function(world, **parameters)` on every rank of a world of each size. `soft`: of ranks
    that each have a software accelerator, on which nothing may be unordered; for the tests in tests/accelerator."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        def test(worlds: "Worlds", tmp_path: Path, world_size: int, **parameters: Any) -> None:
            worlds.run(world_size, function, tmp_path, parameters, soft)

        names = ["worlds", "tmp_path", "world_size", *list(inspect.signature(function).parameters)[1:]]
        parameters = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names]
        test.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        test.__name__, test.__doc__ = function.__name__, function.__doc__
        test.on_each_rank = function  # type: ignore[attr-defined]
        given = given_size()
        # A test of several sizes is one of any size.
        fitting = sizes if given is None else [given] if (given in sizes or len(sizes) > 1) and not soft else []
        marked = pytest.mark.parametrize("world_size", fitting, ids=[f"{size}ranks" for size in fitting])(test)
        return pytest.mark.usefixtures("soft_is_built")(marked) if soft else marked

    return decorate


class Worlds:
    """The running worlds, by size and by whether their ranks have software accelerators."""

    def __init__(self) -> None:
        self._ranks: dict[tuple[int, bool], list[Rank]] = {}
        self.given = GivenWorld(TIMEOUT) if given_size() is not None else None
        if self.given is not None:
            os.environ[ORACLE_DEVICE] = str(self.given.device)

    def run(
        self, size: int, function: Callable[..., None], tmp_path: Path, parameters: dict[str, Any], soft: bool = False
    ) -> None:
        if self.given is not None:
            world = World(self.given.rank, self.given.size, self.given.device, self.given.shared(tmp_path))
            self.given.run(partial(function, world, **parameters))
            return
        kind = (size, soft)
        if kind not in self._ranks:
            self._ranks[kind] = _start(size, tmp_path, soft)
        task = (function.__code__.co_filename, function.__name__, tmp_path, parameters)
        for rank in self._ranks[kind]:
            rank.connection.send(task)
        end = time.monotonic() + LONGEST_S
        answers = [rank.answer(end) for rank in self._ranks[kind]]
        failures = [f"rank {rank} of {size}: {failure}" for rank, failure in enumerate(answers) if failure]
        if failures:
            self._stop(kind)
            pytest.fail("\n".join(failures), pytrace=False)

    def close(self) -> None:
        if self.given is not None:
            self.given.close()
        for kind in list(self._ranks):
            self._stop(kind)

    def close_soft(self) -> None:
        """Their groups' threads outlive the groups."""
        for kind in [kind for kind in self._ranks if kind[1]]:
            self._stop(kind)

    def _stop(self, kind: tuple[int, bool]) -> None:
        ranks = self._ranks.pop(kind)
        for rank in ranks:
            rank.connection.close()  # its recv() ends it
        for rank in ranks:
            rank.process.join(timeout=10)
            if rank.process.is_alive():
                rank.process.kill()


def _start(size: int, tmp_path: Path, soft: bool) -> list[Rank]:
    context = mp.get_context("spawn")
    ranks = []
    for rank in range(size):
        ours, theirs = context.Pipe()
        stacks = tmp_path / f"{rank}.stacks"
        arguments = (rank, size, tmp_path / "store", theirs, sys.path, soft, stacks)
        process = context.Process(target=_serve, args=arguments, daemon=True)
        process.start()
        theirs.close()
        ranks.append(Rank(process, ours, stacks))
    return ranks


def _serve(
    rank: int, size: int, store: Path, connection: Connection, path: list[str], soft: bool, stacks: Path
) -> None:
    faulthandler.enable(stacks.open("w"))
    sys.path[:] = path
    torch.set_num_threads(1)
    os.environ["HF_HUB_OFFLINE"] = "1"
    device, backend = _device_of(rank, size, soft)
    os.environ[ORACLE_DEVICE] = "cpu" if soft else str(device)
    dist.init_process_group(
        backend,
        init_method=f"file://{store}",
        rank=rank,
        world_size=size,
        timeout=TIMEOUT,
    )
    control = dist.new_group(backend="gloo")
    kept = _groups()
    while True:
        try:
            file, name, tmp_path, parameters = connection.recv()
        except EOFError:
            break
        # All ranks are done with the test before. Each group has a thread that never sleeps for long: thousands of them
        # would take the machine.
        for group in _groups() - kept:
            destroy_group(group)
        try:
            with nothing_unordered() if soft else nullcontext():
                _load(file, name)(World(rank, size, device, tmp_path, control), **parameters)
            connection.send(None)
        except BaseException:
            connection.send(traceback.format_exc())
    dist.destroy_process_group()


def _end(groups: set[dist.ProcessGroup]) -> None:
    while groups:
        dist.destroy_process_group(groups.pop())
    gc.collect()  # the test's models and pipelines, which hold each other and their groups


def _groups() -> set[dist.ProcessGroup]:
    return set(dist.distributed_c10d._world.pg_map)


def _device_of(rank: int, size: int, soft: bool) -> tuple[torch.device, str]:
    """The rank's device, made the current one, and the backend of its group."""
    if soft:
        register()
        have_inference_mode()
    elif torch.cuda.device_count() < size:
        return torch.device("cpu"), "gloo"
    torch.accelerator.set_device_index(rank)
    device = torch.device("soft" if soft else "cuda", rank)
    return device, f"cpu:gloo,{device.type}:{dist.Backend.default_device_backend_map[device.type]}"


def _load(file: str, name: str) -> Callable[..., None]:
    module_name = f"on_rank_{Path(file).stem}"
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, file)
        assert spec is not None and spec.loader is not None
        sys.modules[module_name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[module_name])
    return getattr(sys.modules[module_name], name).on_each_rank
