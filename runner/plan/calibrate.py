"""How fast the machines are that a plan reckons with: measured where the job would run, and kept in a file."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from runner.errors import UserError
from runner.output.write import read_json, write_json
from runner.plan.machine import RATES, Rates
from runner.world import World
from weights.agreement import this_node

MIB = 2**20
_SECONDS = 0.5  # of each measurement at least, after a first try that is not counted
_PIECE = 8 * MIB
_MOST_READ = 1024 * MIB


def measured(files: list[Path], dtype: torch.dtype, world: World) -> dict[str, float]:
    """FLOP/s and bytes/s as `Rates` has them, the slowest rank's of each; what cannot be measured here is left out
    (`within` needs several ranks of a node, `between` several nodes, `disk` a weight file). Collective."""
    device = world.device
    own = {"flops": _flops(dtype, device), "link": _link(device)}
    nodes = world.gather(this_node())
    if files:
        # All ranks of a node read at once, each a part of its own, and share the disk as they will in a job.
        mine = [rank for rank, node in enumerate(nodes) if node == nodes[world.rank]]
        part = mine.index(world.rank)
        own["disk"] = _disk(max(files, key=lambda file: file.stat().st_size), part, len(mine)) * len(mine)
    if world.size > 1:
        own["within" if len(set(nodes)) == 1 else "between"] = _exchange(device, world.size)
    ranks = world.gather(own)
    return {name: min(rank[name] for rank in ranks) for name in own}


def keep(file: Path, rates: dict[str, float], dtype: torch.dtype, device: torch.device) -> None:
    write_json(file, {**rates, "dtype": str(dtype).removeprefix("torch."), "device": device.type, "node": this_node()})


def read_rates(file: Path | None, stated: dict[str, float]) -> Rates:
    """Those of the file, and over them what is stated. Raises UserError for a file that holds none."""
    found: dict[str, float] = {}
    if file is not None:
        kept = read_json(file)
        found = {name: float(kept[name]) for name in RATES if isinstance(kept.get(name), int | float)}
        if not found or any(value <= 0 for value in found.values()):
            raise UserError(f"{file} holds no speeds; scripts/plan.py --calibrate {file} measures and writes them")
    sources = dict.fromkeys(found, "measured") | dict.fromkeys(stated, "stated")
    return Rates(**{**found, **stated}, sources=sources)


def _flops(dtype: torch.dtype, device: torch.device) -> float:
    """Of a product of square matrices."""
    side = 8192 if device.type != "cpu" else 1024
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2.0 * side**3 / _seconds(lambda: left @ right, device)


def _link(device: torch.device) -> float:
    """From page-locked memory to the device; where that is the host's, from memory to memory."""
    source = torch.ones(256 * MIB, dtype=torch.uint8, pin_memory=device.type == "cuda")
    target = torch.empty_like(source, device=device)
    return source.nbytes / _seconds(lambda: target.copy_(source, non_blocking=True), device)


def _disk(file: Path, part: int, parts: int) -> float:
    """Bytes/s of this rank. The kernel is asked to drop what it keeps of the file first, which it need not do: what a
    network file system or the disk itself keeps is not ours to drop."""
    size = file.stat().st_size // parts
    begin, end = part * size, part * size + min(size, _MOST_READ // parts)
    buffer = bytearray(_PIECE)
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        start, at = time.perf_counter(), begin
        while at < end and (got := os.preadv(descriptor, [buffer], at)):
            at += got
        return (at - begin) / max(time.perf_counter() - start, 1e-9)
    finally:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def _exchange(device: torch.device, ranks: int) -> float:
    """What a rank gets from the others, of an all-gather of 16 MiB from each."""
    own = torch.ones(16 * MIB, dtype=torch.uint8, device=device)
    whole = torch.empty(ranks * own.nbytes, dtype=torch.uint8, device=device)
    # So many on all ranks: they could not agree on when it is enough without another collective.
    seconds = _seconds(lambda: dist.all_gather_into_tensor(whole, own), device, times=8)
    return (ranks - 1) * own.nbytes / seconds


def _seconds(action: Callable[[], object], device: torch.device, times: int | None = None) -> float:
    """The least of one."""
    action()
    best, start, done = float("inf"), time.perf_counter(), 0
    while done < times if times else time.perf_counter() - start < _SECONDS or done < 3:
        _settle(device)
        begin = time.perf_counter()
        action()
        _settle(device)
        best, done = min(best, time.perf_counter() - begin), done + 1
    return best


def _settle(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
