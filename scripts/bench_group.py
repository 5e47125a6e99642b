"""What a group saves: seconds a picture at N requests together, against resident weights and against the peers.

  OMP_NUM_THREADS=1 python scripts/bench_group.py [--case 3x] [--quick]

The included model, grown, with random weights in fp32, makes pictures of as many prompts in each arm. A round is each
arm once, in random order; ratios are paired within a round, printed as median and 10th .. 90th percentile. The pictures
of all arms are compared bit for bit before anything is timed.

Arms:
  resident        all weights in memory, one picture after the other
  N = 1, 2, ...   text encoder and DiT where the case has them, N pictures together (1: as without groups)
  auto            as job.group=auto does: one picture is measured, then groups until they are large enough
  auto, once measured   groups of the size that it would choose for all of them: what it comes to in a long job
  diffusers       enable_group_offload(offload_to_disk_path=...), groups of one block; only with the disk as it is
  accelerate      disk_offload; only with the disk as it is

Cases: the disk as it is, warm and cold (their pages dropped from the page cache before each arm); a reader that is
slowed to 0.1 and 0.5 GB/s (it waits after each read), and to three times what the DiT computes in; sharded over two
gloo ranks, which the script starts itself; 32 prompts with most weights in the text encoder. How long the weights take
to come up, over computing, as auto measured it, is printed for each.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from bench import page_cache
from bench.group_arms import FRESH, PEERS, RESIDENT, Arms, paced
from bench.group_cases import CASES, Case, quick
from bench.grown import write_grown
from bench.ratios import note

from runner.world import World, joined_world

ENVIRONMENT = dict(os.environ)  # before this process joins a world of its own


def main() -> None:
    options = _parse()
    diffusers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()
    figures: dict[str, Any] = {}
    rank = int(ENVIRONMENT.get("RANK", "0"))
    for name in options.case or CASES:
        case = CASES[name]
        if options.quick:
            case = replace(case, **quick(case))
        case = replace(case, rounds=max(1, round(case.rounds * options.rounds)))
        if case.ranks > int(ENVIRONMENT.get("WORLD_SIZE", "1")):
            figures |= _on_ranks(name, case.ranks, options)
            continue
        with joined_world() as world, tempfile.TemporaryDirectory(prefix="bench_group.", dir=options.folder) as own:
            figures[name] = _run(case, world, Path(world.from_rank_0(own if world.rank == 0 else None)))
    if options.json and rank == 0:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


def _on_ranks(name: str, ranks: int, options: argparse.Namespace) -> dict[str, Any]:
    """The case as a job of its own; what it found."""
    with tempfile.TemporaryDirectory(prefix="bench_group.") as folder:
        file = Path(folder) / "figures.json"
        words = ["--case", name, "--rounds", str(options.rounds), "--json", str(file), *["--quick"] * options.quick]
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        subprocess.run([*launch, __file__, *words], env=ENVIRONMENT, check=True)
        return json.loads(file.read_text())


def _run(case: Case, world: World, shared: Path) -> dict[str, Any]:
    folder = shared / "model"
    if world.rank == 0:
        sizes = write_grown(folder, **case.model)
        weights = ", ".join(f"{name} {size >> 20} MiB" for name, size in sizes.items())
        print(
            f"\n{case.title}: {weights}, {case.limit}, {case.pictures} pictures of {case.steps} steps, "
            f"{(case.size // 8) ** 2} tokens", flush=True,
        )  # fmt: skip
    world.gather(None)
    arms = Arms(case, world, folder)
    bandwidth = case.bandwidth
    if case.slower:
        bandwidth = arms.dit_bytes / 1e9 / (case.slower * arms.dit_seconds)
    try:
        with paced(bandwidth):
            seconds = _measure(arms)
    finally:
        arms.close()
    figures = {"seconds": seconds, "case": vars(case), "bandwidth": bandwidth}
    if world.rank == 0:
        _print(seconds, case)
        assert arms.choice is not None
        figures["auto"] = arms.choice.described()
        for component, one in arms.choice.figures[0].components.items():
            print(f"{component}: transfer {one.transfer:.3f} s a pass, {one.transfer / one.compute:.1f} x compute")
        print(f"auto chose {arms.choice.number}: {arms.choice.reason}", flush=True)
    return figures


def _measure(arms: Arms) -> dict[str, list[float]]:
    """Seconds a picture, by arm: of each round."""
    case, world = arms.case, arms.world
    if case.cold:
        page_cache.flush(page_cache.files_in(arms.folder.parent))
    expected = arms.arms[RESIDENT]()
    for name, arm in arms.arms.items():
        same = all(torch.equal(one, other) for one, other in zip(arm(), expected, strict=True))
        if not all(world.gather(same)) and name not in PEERS:
            raise SystemExit(f"{name} gives other bits than resident weights; not timed")
    seconds: dict[str, list[float]] = {name: [] for name in arms.arms}
    for round_number in range(case.rounds):
        order = list(arms.arms)
        random.Random(round_number).shuffle(order)
        for name in order:
            if case.cold:
                page_cache.evict(page_cache.files_in(arms.folder.parent))
            world.gather(None)
            start = time.perf_counter()
            arms.arms[name]()
            took = max(world.gather(time.perf_counter() - start))
            seconds[name].append(took / case.pictures)
    return seconds


def _print(seconds: dict[str, list[float]], case: Case) -> None:
    resident, one = np.array(seconds[RESIDENT]), np.array(seconds["N = 1"])
    groups = {key: np.array(values) for key, values in seconds.items() if key.startswith("N = ") and "," not in key}
    best_name = min(groups, key=lambda key: float(np.median(groups[key])))
    print(f"{'arm':24}  s a picture   x resident (10th .. 90th)   x N = 1   x best N")
    for name, values in seconds.items():
        low, ratio, high = np.percentile(np.array(values) / resident, (10, 50, 90))
        of_one, of_best = np.median(np.array(values) / one), np.median(np.array(values) / groups[best_name])
        span = f"{ratio:6.2f} ({low:.2f} .. {high:.2f})"
        print(f"{name:24}  {statistics.median(values):11.3f}   {span:25}   {of_one:7.2f}   {of_best:8.2f}")
    for name, values in seconds.items():
        if name != RESIDENT:
            note(f"{case.title}: {name} / resident", np.array(values) / resident, case.aims.get(name))
    for name, aim in case.over_one.items():
        note(f"{case.title}: {name} / N = 1", np.array(seconds[name]) / one, aim)
    if case.over_fresh is not None:
        note(f"{case.title}: N = 1 / {FRESH}", one / np.array(seconds[FRESH]), case.over_fresh)
    for name, aim in case.over_best.items():
        note(f"{case.title}: {name} / {best_name}", np.array(seconds[name]) / groups[best_name], aim)
    for name in set(PEERS) & set(seconds):
        note(f"{case.title}: {best_name} / {name}", groups[best_name] / np.array(seconds[name]))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, action="append", help="one case, or several (default: all)")
    parser.add_argument("--rounds", type=float, default=1.0, metavar="X", help="times the usual rounds (default: 1)")
    parser.add_argument("--quick", action="store_true", help="to see that it works: a small model, one round")
    parser.add_argument("--folder", type=Path, help="where the weights are written")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there too")
    return parser.parse_args()


if __name__ == "__main__":
    main()
