"""What it costs the host to give a block its weights and to take them away again, at every call of every block.

  OMP_NUM_THREADS=1 python scripts/bench_binding.py [--rounds 200]

A Flux of 19 double and 38 single blocks, narrow, since the cost goes by the number of weights and not by their size.
`kept`: the views of a slot are made once for each unit that comes into it. `made anew`: at every call, as before that.
Microseconds a block, the median over the rounds and the 10th and 90th percentile.
"""

import argparse
import platform
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import FluxTransformer2DModel

from offload import DiskStore, find_aliases, offload, plan_units
from offload.binding import UnitWeights
from offload.ring import Slot
from weights.checkpoint import Checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200, help="(default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="bench_binding.") as folder, torch.no_grad():
        model = narrow_flux()
        model.save_pretrained(folder)
        store = DiskStore(Checkpoint(Path(folder)), plan_units(model), aliases=find_aliases(model))
        offloaded = offload(model, store, device=torch.device("cpu"), window="all")
        offloaded.begin()
        blocks = [(unit, offloaded._ring.take(unit.name)) for unit in offloaded._streamed]
        weights = sum(len(unit._tensors) for unit, _ in blocks) / len(blocks)
        print(f"{platform.machine()}, torch {torch.__version__}: {len(blocks)} blocks of {weights:.0f} weights")
        report(measure(blocks, options.rounds))
        offloaded.end()


def narrow_flux() -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        num_layers=19, num_single_layers=38, attention_head_dim=16, num_attention_heads=2, in_channels=16,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 6, 6), guidance_embeds=True,
    )  # fmt: skip


def measure(blocks: list[tuple[UnitWeights, Slot]], rounds: int) -> dict[str, list[float]]:
    """Seconds a block by arm, one figure for each round; the arms take turns in random order."""
    seconds: dict[str, list[float]] = {"bind, views made anew": [], "bind, views kept": [], "unbind": []}
    order = random.Random(0)
    for _ in range(rounds):
        for arm in order.sample(["bind, views made anew", "bind, views kept"], 2):
            if arm == "bind, views made anew":
                for _, slot in blocks:
                    slot._weights.clear()
            seconds[arm].append(timed(lambda: [unit.bind(slot) for unit, slot in blocks]) / len(blocks))
            seconds["unbind"].append(timed(lambda: [unit.unbind() for unit, _ in blocks]) / len(blocks))
    return seconds


def timed(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def report(seconds: dict[str, list[float]]) -> None:
    for arm, values in seconds.items():
        low, middle, high = np.percentile(values, (10, 50, 90)) * 1e6
        print(f"  {arm:22} {middle:7.1f} us a block   (10th-90th percentile {low:.1f}-{high:.1f})")


if __name__ == "__main__":
    main()
