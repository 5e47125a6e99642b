"""What sharding over ranks costs and saves, measured against the other ways to do it, in one interleaved run.

  OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node 2 scripts/bench_sharding.py [--part modes]

Parts:
  modes         a sharded Flux's denoise loop: no_grad everywhere, leave_inference=component, leave_inference=weights;
                and what it costs that the ranks agree before each sharded call
  handwritten   sharding.shard, with its prefetch settings, against the textbook's loop of fully_shard and against
                accelerate's wrapping
  load          416M parameters from safetensors files to sharded weights: seconds, bytes read, peak memory a rank
  layout        bytes a rank of Flux and of Wan-14B over 64 and 512 ranks that do not exist, and the seconds that takes

Modes and handwritten have a launch-bound model (many small blocks, few tokens: Python and dispatch are the time) and a
compute-bound one. Outputs are compared bit for bit before anything is timed. Each round runs every arm once, in random
order; ratios are paired within a round and printed as median and 10th .. 90th percentile. A line named `noise` compares
an arm with itself: believe no ratio that is nearer to 1 than that one's spread. Below 1 the left one is faster.

One node. Ranks are gloo processes on CPUs, or take an accelerator each where there are some. Leave a core for each
rank free: ranks wait for one another, so that whatever else runs slows down all of them.
"""

import json
import os
import platform
import signal
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from typing import Any

import diffusers
import torch
from bench import layouts, loads, modes, textbook
from bench.parts import parse

from runner.world import World, joined_world

PARTS = ("modes", "handwritten", "load", "layout")


def main() -> None:
    options = parse(__doc__, PARTS)
    diffusers.utils.logging.set_verbosity_error()
    figures: dict[str, Any] = {}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # as torchrun does, and temporary folders go
    with joined_world() as world:
        figures["machine"] = _machine(world)
        if world.rank == 0:
            print(figures["machine"], flush=True)
        for part in options.part or PARTS:
            figures[part] = _run(part, world, options.rounds)
        if world.rank == 0 and options.json:
            options.json.write_text(json.dumps(figures, indent=1, default=asdict) + "\n")


def _run(part: str, world: World, scale: float) -> Any:
    if part == "modes":
        return modes.run(world, scale)
    if part == "handwritten":
        return textbook.run(world, scale)
    if part == "load":
        return loads.run(world, rounds=max(1, round(4 * scale)))
    return _lay_out(world)


def _lay_out(world: World) -> list[layouts.LaidOut]:
    """By rank 0, in a process that is in no world."""
    rows: list[layouts.LaidOut] = []
    if world.rank == 0:
        print("\nlayout, bf16 over ranks that do not exist", flush=True)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            rows = process.submit(layouts.lay_out_all).result()
        print(layouts.table(rows), flush=True)
    return world.gather(rows)[0]


def _machine(world: World) -> str:
    name = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else platform.machine()
    load = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    return (
        f"{world.size} ranks on {world.device.type} ({name}), {os.cpu_count()} cores, load {load}, "
        f"{torch.get_num_threads()} thread(s) a rank; "
        f"Python {platform.python_version()}, torch {torch.__version__}, diffusers {diffusers.__version__}"
    )


if __name__ == "__main__":
    main()
