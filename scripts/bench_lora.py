"""What an adapter costs: time and memory of merging and switching it, against loading the whole component anew.

  OMP_NUM_THREADS=1 python scripts/bench_lora.py resident
  OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node 2 scripts/bench_lora.py sharded

The component is a Flux with 416M parameters in bf16 and random weights; the adapters have rank 16 beside every linear
layer of its blocks. One placement a process, since memory that one freed would hide what the next one takes. In order:

  load            the component from its files (in the page cache) to its placement: what a switch would else cost
  merge A         the first time, when the files are compared with the weights, which are their base
  switch A -> B   later merges, the median of several
  weight of B
  a pass, B       of an offloaded component: every unit fetched once, as a denoising step does, and B merged into it
  remove          base bits again, checked
  a pass, base
  dynamic: A, B   the same two, applied beside the layers: nothing is computed, factors are copied once

Seconds, and the processor's seconds, which other work disturbs less, are those of the slowest rank. `peak` is what a
rank's own memory grew by at the most while a step ran, sampled each millisecond; `kept` what it has grown by since the
load, after the step. A rank's own memory is not that of mapped files, nor the copy on the host that ranks share. For
the sake of these two, malloc is told to give large blocks back at once: left to itself, glibc keeps much of what
gathering frees, up to the whole weights.
"""

import argparse
import ctypes
import gc
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import diffusers
import torch
from bench.checkpoint import write_checkpoint
from bench.load_once import CLASS, DTYPE, measured_peaks
from safetensors.torch import save_file
from torch import nn
from torch.distributed.tensor import DTensor

from lora import Edits, edits_of, read_adapter
from offload import Offloaded, offloader_of
from offload.ring import Slot
from runner.components.groups import build_groups
from runner.components.load import load_component
from runner.components.source import Source
from runner.config import LoraMode, PlacementConfig, Rest, RunConfig, Share
from runner.pipeline.adapters import place_in
from runner.world import World, joined_world

PLACEMENTS = {
    "resident": PlacementConfig(),
    "sharded": PlacementConfig(share=Share.shard),
    "sharded-host": PlacementConfig(share=Share.shard, rest=Rest.host),
    "host": PlacementConfig(rest=Rest.host),
    "disk": PlacementConfig(rest=Rest.disk),
}
RANK = 16
MIB = 2**20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


@dataclass(frozen=True)
class Cost:
    """Of one step, on one rank: seconds, those of a processor, and bytes at the peak."""

    seconds: float
    cpu_seconds: float
    peak: int


def main() -> None:
    options = _parse()
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    with joined_world() as world, _files(world) as folder:
        _Bench(world, folder, options.rounds).run(options.placement, PLACEMENTS[options.placement])


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("placement", choices=PLACEMENTS, help="of the component")
    parser.add_argument("--rounds", type=int, default=3, help="of each switch (default: %(default)s)")
    return parser.parse_args()


@contextmanager
def _files(world: World) -> Iterator[Path]:
    """A temporary folder with the component and two adapters in it, written by rank 0."""
    with tempfile.TemporaryDirectory(prefix="bench_lora.") as own:
        folder = Path(world.gather(own)[0])
        if world.rank == 0:
            (folder / "transformer").mkdir()
            write_checkpoint(folder / "transformer")
            for seed, name in enumerate("AB"):
                _write_adapter(folder / f"{name}.safetensors", folder / "transformer", seed)
        world.gather(None)
        yield folder
        world.gather(None)  # rank 0 deletes the files, so it goes last


def _write_adapter(file: Path, component: Path, seed: int) -> None:
    with torch.device("meta"):
        module = CLASS.from_config(CLASS.load_config(component, local_files_only=True))
    generator, factors = torch.Generator().manual_seed(seed), {}
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear) and "blocks." in name:
            sizes = {"A": (RANK, layer.in_features), "B": (layer.out_features, RANK)}
            for side, size in sizes.items():
                values = torch.randn(size, generator=generator) * 0.02
                factors[f"transformer.{name}.lora_{side}.weight"] = values.to(DTYPE)
    save_file(factors, file)


class _Bench:
    """The steps of one placement, on this rank; prints on rank 0. Collective."""

    def __init__(self, world: World, folder: Path, rounds: int) -> None:
        self._world, self._folder, self._rounds = world, folder, rounds
        self._load = Cost(0, 0, 0)
        self._own = 0  # bytes of this rank's memory after the load

    def run(self, name: str, placement: PlacementConfig) -> None:
        world, source = self._world, Source("transformer", CLASS, self._folder / "transformer")
        groups = build_groups(RunConfig(placement={"default": placement}), ["transformer"], world)
        before = _own_bytes()
        made: list[nn.Module] = []
        _give_back_blocks_of(MIB)
        self._load = self._cost(lambda: made.append(load_component(source, DTYPE, placement, world, groups)[0]))
        (module,) = made
        self._own = _own_bytes()
        _give_back_blocks_of(8 * MIB)  # not the tiles of a merge: it would wait for new pages again and again
        adapters = {key: read_adapter(self._folder / f"{key}.safetensors", {"transformer": module}) for key in "AB"}
        base = _digest(module)
        self._print(
            f"\n{name}, {world.size} rank(s): {(self._own - before) / MIB:.0f} MiB a rank has after the load, "
            f"adapters of {adapters['A'].num_bytes / MIB:.1f} MiB, load average {_load_average()}"
        )
        self._print(f"  {'':18}{'seconds':>9}{'cpu s':>9}{'load / it':>11}{'peak, MiB':>11}{'kept, MiB':>11}")
        self._row("load", [self._load])
        self._own = _own_bytes()  # with the adapters as they were read

        def edits(**active: float) -> Edits:
            return edits_of("transformer", adapters, active)

        merged, offloaded = place_in(module, LoraMode.merge, world.device, source), offloader_of(module)
        self._row("merge A", [self._cost(lambda: merged.set(edits(A=1.0)))])
        steps = {"switch A -> B": (edits(A=1.0), edits(B=1.0)), "weight of B": (edits(B=1.0), edits(B=0.5))}
        for step, (start, end) in steps.items():
            costs = []
            for _ in range(self._rounds):
                merged.set(start)
                costs.append(self._cost(lambda end=end: merged.set(end)))  # type: ignore[misc]
            self._row(step, costs)
        if offloaded:
            self._row("a pass, B", [self._cost(lambda: _fetch_all(offloaded)) for _ in range(self._rounds)])
        self._row("remove", [self._cost(lambda: merged.set(Edits()))])
        assert _digest(module) == base
        if offloaded:
            self._row("a pass, base", [self._cost(lambda: _fetch_all(offloaded)) for _ in range(self._rounds)])

        self._own = _own_bytes()  # with what merging keeps, which the next does not need
        beside = place_in(module, LoraMode.dynamic, world.device, source)
        for step, end in {"dynamic: A": edits(A=1.0), "dynamic: A -> B": edits(B=1.0)}.items():
            self._row(step, [self._cost(lambda end=end: beside.set(end))])  # type: ignore[misc]

    def _cost(self, step: Callable[[], object]) -> Cost:
        _own_bytes()  # so that nothing comes from what an earlier step left
        self._world.gather(None)
        with measured_peaks() as peaks:
            start, cpu_start = time.perf_counter(), time.process_time()
            step()
            if self._world.device.type != "cpu":
                torch.accelerator.synchronize()
            seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
            time.sleep(0.005)  # so that the peak of a short step is seen
        return Cost(seconds, cpu_seconds, peaks[0])

    def _row(self, step: str, costs: list[Cost]) -> None:
        mine = (
            median(cost.seconds for cost in costs),
            median(cost.cpu_seconds for cost in costs),
            self._load.seconds,
            max(cost.peak for cost in costs),
            _own_bytes() - self._own,
        )
        seconds, cpu, loading, peak, kept = (max(values) for values in zip(*self._world.gather(mine), strict=True))
        self._print(f"  {step:18}{seconds:9.3f}{cpu:9.3f}{loading / seconds:11.1f}{peak / MIB:11.0f}{kept / MIB:11.0f}")

    def _print(self, line: str) -> None:
        if self._world.rank == 0:
            print(line, flush=True)


def _fetch_all(offloaded: Offloaded) -> None:
    """Each unit once, one after the other, as the ring does with a window of one."""
    packings = offloaded.store.packings
    slot = Slot(offloaded._engine, max(packing.num_bytes for packing in packings.values()))
    for unit in packings:
        slot.fetch(offloaded.store, unit, offloaded._edits)
        slot.wait()
        slot.release()
    slot.free()


def _digest(module: nn.Module) -> int:
    """Of every weight's name and of this rank's slice, bit for bit, wherever it rests."""
    digest = 0
    for name, tensor in sorted(module.state_dict().items()):
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        digest = zlib.crc32(name.encode(), digest)
        digest = zlib.crc32(local.cpu().contiguous().view(torch.uint8).numpy(), digest)
    return digest


def _give_back_blocks_of(num_bytes: int) -> None:
    """What is freed and at least as large goes back to the system at once; of what is smaller, some may be kept."""
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, num_bytes)
    libc.mallopt(_M_TRIM_THRESHOLD, 4 * num_bytes)


def _own_bytes() -> int:
    """Of this rank now; what malloc holds for later use is given back first."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) * 1024


def _load_average() -> str:
    return Path("/proc/loadavg").read_text().split()[0]


if __name__ == "__main__":
    main()
