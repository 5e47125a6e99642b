"""What a group saves: seconds a picture at N requests together, against resident weights and against the peers.

  OMP_NUM_THREADS=1 python scripts/bench_group.py [--quick] [--bandwidth 0.1] [--placement rest=disk]
  torchrun --standalone --nproc-per-node 2 scripts/bench_group.py --placement share=shard

The included model, grown to --layers blocks with random weights in bf16, makes --pictures pictures of as many prompts
in each arm. A round is each arm once, in random order; ratios are paired within a round, printed as median and 10th ..
90th percentile. The pictures of all arms are compared bit for bit before anything is timed.

Arms:
  resident        all weights in memory, one picture after the other
  N = 1, 2, ...   text encoder and DiT as --placement says, N pictures together (1: as without groups)
  auto            the size that job.group=auto chooses from one measured picture, which is in its seconds
  diffusers       enable_group_offload(offload_to_disk_path=...), groups of one block; only with --peers
  accelerate      disk_offload; only with --peers

--bandwidth paces our reader to so many GB/s: it waits after each read. The peers read as they do, so they are compared
with the disk as it is. --cold drops the files' pages from the page cache before each arm.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import accelerate
import diffusers
import numpy as np
import torch
from bench import page_cache
from bench.grown import write_grown
from bench.ratios import note

import offload
from runner.calls.meter import Meter
from runner.config import load_config
from runner.job.group_size import choose, figures_of
from runner.pipeline.open import open_pipeline
from runner.pipeline.pipeline import Pipeline
from runner.request import Request
from runner.world import World, joined_world

Arm = Callable[[], list[torch.Tensor]]


def main() -> None:
    options = _parse()
    diffusers.utils.logging.disable_progress_bar()
    with joined_world() as world, tempfile.TemporaryDirectory(prefix="bench_group.", dir=options.folder) as temporary:
        shared = Path(world.from_rank_0(temporary if world.rank == 0 else None))
        folder = shared / "model"
        if world.rank == 0:
            sizes = write_grown(
                folder,
                layers=options.layers,
                heads=options.heads,
                encoder_layers=options.encoder_layers,
                encoder_width=options.encoder_width,
            )
            weights = ", ".join(f"{name} {size >> 20} MiB" for name, size in sizes.items())
            limit = f"{options.bandwidth:g} GB/s" if options.bandwidth else "the disk as it is"
            print(
                f"{weights}, {options.placement}, {limit}, {options.pictures} pictures, {options.steps} steps",
                flush=True,
            )
        world.gather(None)
        with _paced(options.bandwidth):
            figures = _measure(_arms(options, world, folder), options, world, folder)
    if world.rank == 0:
        _print(figures, options)


def _arms(options: argparse.Namespace, world: World, folder: Path) -> dict[str, Arm]:
    base = [f"model.path={folder}", "model.dtype=bfloat16"]
    moving = [f"placement.{name}.{word}" for name in ("transformer", "text_encoder") for word in options.placement]
    resident = open_pipeline(load_config(None, base), world)
    moved = open_pipeline(load_config(None, [*base, *moving]), world)
    call = {
        "num_inference_steps": options.steps,
        "height": 64,
        "width": 64,
        "guidance_scale": 1.0,
        "use_resolution_binning": False,
    }
    requests = [Request(f"a rocket number {n}", n, call, output_type="np") for n in range(options.pictures)]
    arms: dict[str, Arm] = {"resident": lambda: _one_by_one(resident, requests)}
    for number in options.numbers:
        arms[f"N = {number}"] = lambda number=number: _together(moved, requests, number)
    arms["auto"] = lambda: _auto(moved, requests)
    if options.peers:
        for name, offloaded in (("diffusers", _by_diffusers), ("accelerate", _by_accelerate)):
            stock = diffusers.DiffusionPipeline.from_pretrained(folder, dtype=torch.bfloat16)
            for component in ("transformer", "text_encoder"):
                offloaded(getattr(stock, component), folder.parent / f"{name}-{component}")
            stock.set_progress_bar_config(disable=True)
            arms[name] = lambda stock=stock: [_by_stock(stock, request) for request in requests]
    return arms


def _one_by_one(pipeline: Pipeline, requests: list[Request]) -> list[torch.Tensor]:
    return [torch.as_tensor(pipeline(request)[0][0]) for request in requests]


def _together(
    pipeline: Pipeline, requests: list[Request], number: int, meter: Meter | None = None
) -> list[torch.Tensor]:
    if number == 1 and meter is None:
        return _one_by_one(pipeline, requests)
    made: dict[int, torch.Tensor] = {}
    for first in range(0, len(requests), number):
        group = requests[first : first + number]

        def ended(index: int, outcome: Callable[[], Any], seconds: float, first: int = first) -> None:
            made[first + index] = torch.as_tensor(outcome()[0][0])

        pipeline.make_together(group, [None] * len(group), ended, meter=meter)
    return [made[index] for index in range(len(requests))]


def _auto(pipeline: Pipeline, requests: list[Request]) -> list[torch.Tensor]:
    """As a job does: one that is measured, then waves of the same size."""
    meter = Meter(pipeline.components, pipeline.world.device)
    made = _together(pipeline, requests[:1], 1, meter)
    figures = [one for one in pipeline.world.gather(figures_of(meter, pipeline)) if one is not None]
    left = len(requests) - 1
    choice = choose(figures, left)
    pipeline.group = choice.described()
    waves = -(-left // choice.number)
    return made + _together(pipeline, requests[1:], -(-left // waves))


def _by_diffusers(module: Any, folder: Path) -> None:
    cpu = torch.device("cpu")
    diffusers.hooks.apply_group_offloading(
        module, onload_device=cpu, offload_device=cpu, offload_type="block_level", num_blocks_per_group=1,
        offload_to_disk_path=str(folder),
    )  # fmt: skip


def _by_accelerate(module: Any, folder: Path) -> None:
    accelerate.disk_offload(module, str(folder), execution_device=torch.device("cpu"), offload_buffers=True)


def _by_stock(stock: Any, request: Request) -> torch.Tensor:
    generator = torch.Generator().manual_seed(request.seed)
    with torch.inference_mode():
        made = stock([request.prompt], **request.call, generator=generator, output_type="np")
    return torch.as_tensor(made.images[0])


@contextmanager
def _paced(bandwidth: float) -> Iterator[None]:
    """Our reads take as long as at so many GB/s."""
    read = offload.DiskStore.read

    def paced(self: Any, unit: str, out: torch.Tensor) -> None:
        start = time.perf_counter()
        read(self, unit, out)
        time.sleep(max(0.0, out.numel() / (bandwidth * 1e9) - (time.perf_counter() - start)))

    if bandwidth:
        offload.DiskStore.read = paced  # type: ignore[method-assign]
    try:
        yield
    finally:
        offload.DiskStore.read = read  # type: ignore[method-assign]


def _measure(arms: dict[str, Arm], options: argparse.Namespace, world: World, folder: Path) -> dict[str, list[float]]:
    expected = arms["resident"]()
    for name, arm in arms.items():
        same = all(torch.equal(one, other) for one, other in zip(arm(), expected, strict=True))
        if not all(world.gather(same)) and name not in ("diffusers", "accelerate"):
            raise SystemExit(f"{name} gives other bits than resident weights; not timed")
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for round_number in range(options.rounds):
        order = list(arms)
        random.Random(round_number).shuffle(order)
        for name in order:
            if options.cold:
                page_cache.evict(page_cache.files_in(folder))
            world.gather(None)
            start = time.perf_counter()
            arms[name]()
            seconds[name].append(max(world.gather(time.perf_counter() - start)) / options.pictures)
    return seconds


def _print(seconds: dict[str, list[float]], options: argparse.Namespace) -> None:
    resident, one = np.array(seconds["resident"]), np.array(seconds["N = 1"])
    print(f"{'arm':12}  s a picture   x resident (10th .. 90th)   x N = 1")
    for name, values in seconds.items():
        low, ratio, high = np.percentile(np.array(values) / resident, (10, 50, 90))
        print(f"{name:12}  {statistics.median(values):11.3f}   {ratio:6.2f} ({low:.2f} .. {high:.2f})"
              f"{'':10}  {np.median(np.array(values) / one):7.2f}")  # fmt: skip
    where = f"{options.bandwidth:g} GB/s" if options.bandwidth else "the disk as it is"
    where = f"{' '.join(options.placement)}, {where}{', cold' if options.cold else ''}"
    for name, values in seconds.items():
        if name != "resident":
            note(f"a picture, {where}: {name} / resident", np.array(values) / resident)
    for name in {"auto", "diffusers", "accelerate"} & set(seconds):
        others = [np.array(values) for key, values in seconds.items() if key.startswith("N = ")]
        best = min(others, key=lambda one: float(np.median(one)))
        note(f"a picture, {where}: best N / {name}", best / np.array(seconds[name]))
    if options.json:
        options.json.write_text(
            json.dumps({"seconds": seconds, "options": vars(options)}, default=str, indent=1) + "\n"
        )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--placement", nargs="+", default=["rest=disk"], help="of the text encoder and the DiT")
    parser.add_argument("--bandwidth", type=float, default=0.0, help="GB/s of the reader; 0 is the disk as it is")
    parser.add_argument("--numbers", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--pictures", type=int, default=17, help="a rank and arm")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--heads", type=int, default=40)
    parser.add_argument("--encoder-layers", type=int, default=12)
    parser.add_argument("--encoder-width", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cold", action="store_true", help="drop the page cache of the weights before each arm")
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a minute: a small model, few pictures, one round")
    parser.add_argument("--folder", type=Path, help="where the weights are written")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.quick:
        options.layers, options.heads, options.encoder_layers, options.rounds = 6, 16, 4, 1
        options.pictures, options.numbers = 9, [1, 4]
    return options


if __name__ == "__main__":
    main()
