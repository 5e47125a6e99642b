"""Part `load`: a transformer's weights from its files to sharded, by four methods, each load in fresh processes.

  ours                    built on meta, sharded, then each rank reads its slices
  whole, then shard       each rank copies the whole model to its memory, then shards it by the textbook's loop
  mapped, then shard      the same without the copy: diffusers leaves the weights mapped from the file
  broadcast from rank 0   torch's recipe: rank 0 reads, the others receive (broadcast_from_rank0)

The files are in the page cache. `anonymous` is the peak of a rank's own memory above the start, `mapped` that of the
pages of files it touched, which ranks of one node share and the system may drop. `gathered` adds that every block is
gathered once, by sharding.prime for all four. On a CPU the allocator decides how much of what a gather frees goes back
to the system: MALLOC_MMAP_THRESHOLD_=1048576 in the environment makes glibc give back all, for more processor time.
"""

import random
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from bench.checkpoint import write_checkpoint
from bench.load_once import METHODS, Load, load_once
from bench.paired import Spread
from bench.ratios import note
from runner.world import World

MIB = 2**20


def run(world: World, rounds: int) -> dict[str, Any]:
    """One round that only compares bits, then `rounds` that count. Collective."""
    order = random.Random(0)
    loads: dict[str, list[list[Load]]] = {method: [] for method in METHODS}
    with _checkpoint(world) as (folder, weights):
        if world.rank == 0:
            print(
                f"\nload, {weights / MIB:.0f} MiB of bf16 in {len(list(folder.glob('*.safetensors')))} files",
                flush=True,
            )
        for number in range(1 + rounds):
            for method in order.sample(list(METHODS), len(METHODS)):
                load = _in_fresh_process(method, folder, f"{number}-{list(METHODS).index(method)}", world)
                loads[method].append(world.gather(load))
            if number == 0:
                _refuse_unequal({method: done[0] for method, done in loads.items()})
    counted = {method: done[1:] for method, done in loads.items()}
    bound = round(weights / world.size * 1.1) + 64 * MIB
    if world.rank == 0:
        print(_table(counted, bound), flush=True)
        for method in set(METHODS) - {"ours"}:
            note(f"load: seconds of ours / {method}", _slowest(counted["ours"]) / _slowest(counted[method]))
            ours, theirs = (max(load.anonymous for ranks in counted[one] for load in ranks) for one in ("ours", method))
            note(f"load: peak of a rank's own memory, ours / {method}", [ours / theirs])
    figures = {method: [[asdict(load) for load in ranks] for ranks in done] for method, done in counted.items()}
    return {"weights": weights, "bound": bound, "loads": figures}


@contextmanager
def _checkpoint(world: World) -> Iterator[tuple[Path, int]]:
    """A temporary folder with the checkpoint in it, on the node that all ranks are on, and the weights' bytes."""
    with ExitStack() as stack:
        own = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench_sharding.")) if world.rank == 0 else ""
        folder = Path(world.gather(own)[0]) / "transformer"
        weights = write_checkpoint(folder) if world.rank == 0 else 0
        yield folder, world.gather(weights)[0]
        world.gather(None)  # rank 0 deletes the files, so it goes last


def _in_fresh_process(method: str, folder: Path, name: str, world: World) -> Load:
    rendezvous = f"file://{folder.parent / name}"
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(load_once, method, folder, rendezvous, world.rank, world.size, str(world.device)).result()


def _refuse_unequal(loads: dict[str, list[Load]]) -> None:
    expected = [load.digest for load in loads["ours"]]
    for method, ranks in loads.items():
        if [load.digest for load in ranks] != expected:
            raise SystemExit(f"{method} gives other weights than ours; nothing was timed")


def _table(loads: dict[str, list[list[Load]]], bound: int) -> str:
    ours = _slowest(loads["ours"])
    lines = [
        f"  {'':24}{'seconds':>9}{'/ ours':>8}{'':18}{'read':>12}{'mapped':>12}{'anonymous':>12}"
        f"{'gathered: s':>14}{'anonymous':>12}    (MiB, rank by rank)"
    ]
    for method, done in loads.items():
        seconds, ratio = Spread.of(_slowest(done)), Spread.of(_slowest(done) / ours)
        fields = ("bytes_read", "mapped", "anonymous", "gathered_anonymous")
        read, mapped, anonymous, gathered = (f"{_by_rank(done, field):>12}" for field in fields)
        gather = np.median([max(load.gathered_seconds for load in ranks) for ranks in done])
        spread = f"({ratio.low:.2f} .. {ratio.high:.2f})"
        lines.append(
            f"  {method:24}{seconds.median:9.2f}{ratio.median:8.2f}  {spread:16}{read}{mapped}{anonymous}"
            f"{gather:14.2f}{gathered}"
        )
    ranks = len(loads["ours"][0])
    lines.append(f"  bound on anonymous: 1/{ranks} of the weights + 10 % + 64 MiB = {bound / MIB:.0f} MiB a rank")
    for field, when in (("anonymous", "until sharded"), ("gathered_anonymous", "until gathered once")):
        held = all(getattr(load, field) <= bound for done in loads["ours"] for load in done)
        lines.append(f"    {'held' if held else 'MISSED'} by ours {when}")
    return "\n".join(lines)


def _slowest(done: list[list[Load]]) -> np.ndarray:
    return np.array([max(load.seconds for load in ranks) for ranks in done])


def _by_rank(done: list[list[Load]], field: str) -> str:
    """The largest of the rounds, rank by rank."""
    return " ".join(f"{max(getattr(load, field) for load in loads) / MIB:.0f}" for loads in zip(*done, strict=True))
