"""What it costs a node that its ranks load a component whole: our loading against its library's.

  OMP_NUM_THREADS=1 python scripts/bench_resident.py [--ranks 4] [--rounds 3]

A Flux of 416M parameters in bf16 (799 MiB), on the CPU, its files in the page cache:

  ours                  weight by weight into memory of its own; what is loaded is itself host memory, so that each rank
                        ends with a copy
  ours, rest=host       one copy for the node, which the ranks fill together
  from_pretrained       the library's: its weights are pages of the files, which the ranks of a node share, and the
                        system may drop
  library, then a copy  the same, copied into memory of its own

Each arm's seconds and memory are those until every weight was read once. Memory is the ranks' PSS together (each page
divided by the number of processes that map it), above what they have before they load: at the peak, sampled every 10
ms, and when all are ready. Ranks are started anew for each arm.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import diffusers
import psutil
import torch
import torch.distributed as dist
from bench import offload_arms
from bench.checkpoint import write_checkpoint
from bench.ratios import note
from torch import nn

from offload import offloader_of
from runner.components.groups import Groups
from runner.components.load import load_component
from runner.components.source import Source
from runner.components.whole import load_whole
from runner.config import PlacementConfig, Rest
from runner.world import World
from weights.agreement import node_group


def ours(rest: Rest, folder: Path, world: World) -> nn.Module:
    source, placement = Source(folder.name, offload_arms.CLASS, folder), PlacementConfig(rest=rest)
    return load_component(source, offload_arms.DTYPE, placement, world, Groups(node=node_group()))[0]


def mapped(folder: Path, world: World) -> nn.Module:
    return offload_arms.CLASS.from_pretrained(folder, torch_dtype=offload_arms.DTYPE, local_files_only=True)


def by_library(folder: Path, world: World) -> nn.Module:
    return world.agreed(lambda: load_whole(Source(folder.name, offload_arms.CLASS, folder), offload_arms.DTYPE))


ARMS: dict[str, Callable[[Path, World], nn.Module]] = {
    "ours": partial(ours, Rest.device),
    "ours, rest=host": partial(ours, Rest.host),
    "from_pretrained": mapped,
    "library, then a copy": by_library,
}
PAIRS = (
    ("ours", "library, then a copy"),
    ("ours", "from_pretrained"),
    ("ours, rest=host", "from_pretrained"),
)
PAGE = 4096  # bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench_resident.") as temporary:
        weights = write_checkpoint(Path(temporary) / "transformer")
        print(f"{weights / 2**20:.0f} MiB of bf16, {options.ranks} ranks; medians of {options.rounds}")
        of: dict[str, list[tuple[float, float, float]]] = {}
        for arm in ARMS:
            runs = [one_run(arm, Path(temporary) / "transformer", options.ranks) for _ in range(options.rounds)]
            of[arm] = runs
            seconds, peak, ready = (statistics.median(column) for column in zip(*runs, strict=True))
            print(
                f"{arm:22} {seconds:6.2f} s   {peak / weights:5.2f} copies at the peak   {ready / weights:5.2f} ready"
            )

        for place, what in enumerate(("seconds", "memory of all ranks at the peak")):
            for top, bottom in PAIRS:
                pairs = zip(of[top], of[bottom], strict=True)
                note(f"whole, {what}: {top} / {bottom}", [one[place] / other[place] for one, other in pairs])
        for arm, runs in of.items():
            note(f"whole, copies on the node when ready: {arm}", [ready / weights for _, _, ready in runs])


def one_run(arm: str, folder: Path, size: int) -> tuple[float, float, float]:
    """(seconds of the slowest rank, bytes of all at the peak, bytes of all when they are ready)."""
    context = get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="bench_resident.") as meeting:
        pipes, ranks = [], []
        for rank in range(size):
            ours, theirs = context.Pipe()
            ranks.append(context.Process(target=_rank, args=(theirs, arm, rank, size, f"{meeting}/ranks", folder)))
            ranks[-1].start()
            theirs.close()
            pipes.append(ours)
        processes = [psutil.Process(process.pid) for process in ranks]
        for pipe in pipes:
            pipe.recv()  # it has imported everything
        before = _pss(processes)
        for pipe in pipes:
            pipe.send("load")
        peak = 0
        while not all(pipe.poll() for pipe in pipes):
            peak = max(peak, _pss(processes))
            time.sleep(0.01)
        seconds, ready = max(pipe.recv() for pipe in pipes), _pss(processes)
        for pipe, process in zip(pipes, ranks, strict=True):
            pipe.send("end")
            process.join()
    return seconds, max(peak, ready) - before, ready - before


def _read(model: nn.Module) -> None:
    """A byte of each page of its weights, wherever they rest."""
    if (offloaded := offloader_of(model)) is not None:
        weights = [offloaded.store.view(unit) for unit in offloaded.store.packings]
    else:
        weights = [weight.detach() for weight in model.parameters()]
    for weight in weights:
        assert weight is not None
        weight.flatten().view(torch.uint8)[::PAGE].sum()


def _pss(processes: Sequence[psutil.Process]) -> int:
    return sum(process.memory_full_info().pss for process in processes)


def _rank(connection: Connection, arm: str, rank: int, size: int, meeting: str, folder: Path) -> None:
    torch.set_num_threads(1)
    diffusers.utils.logging.disable_progress_bar()
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    world = World(rank, size, offload_arms.CPU, dist.new_group(backend="gloo"))
    connection.send("ready")
    connection.recv()
    start = time.perf_counter()
    model = ARMS[arm](folder, world)
    _read(model)
    connection.send(time.perf_counter() - start)
    connection.recv()
    del model
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
