"""What the runner adds to a pipeline call: ours against the bare stock pipeline, with the same loaded modules.

Two copies of the weights differ by more than is to be measured. So the boundaries stay on; outside a request of ours
they do nothing, which takes about 2 us a call.

The default call has 4 latent tokens, so that little arithmetic hides the cost of Python and of operator dispatch.
Every round calls each arm once, in random order; ratios are paired within a round. `again` repeats `inference`: its
ratio shows the noise.
"""

import argparse
import gc
import platform
import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import diffusers
import numpy as np
import torch
from bench.ratios import note

from runner.config import ModelConfig, RunConfig
from runner.pipeline.open import open_pipeline
from runner.request import Request
from runner.world import World

Arm = Callable[[], Any]
AIMS = {"ours": 1.015}
RATIOS = (("ours", "inference"), ("ours", "no_grad"), ("inference", "no_grad"), ("again", "inference"))


def main() -> None:
    options = _parse()
    diffusers.logging.set_verbosity_error()
    device = torch.device(options.device)
    config, world = RunConfig(model=ModelConfig(path=options.model)), World(0, 1, device)
    pipeline = open_pipeline(config, world)
    call = {"height": options.size, "width": options.size, "num_inference_steps": options.steps}
    if "use_resolution_binning" in pipeline.arguments.takes:  # PixArt and Sana would move the size to one they know.
        call["use_resolution_binning"] = False
    pipeline.arguments.check(call, "call")
    pipeline.arguments.check_prompt(options.prompt, call, "--prompt")

    def bare(mode: Callable[[], AbstractContextManager[Any]]) -> Any:
        with mode():
            output = pipeline.stock(
                **pipeline.arguments.of_prompt(options.prompt),
                **call,
                generator=torch.Generator("cpu").manual_seed(options.seed),
                output_type="np",
            )
        return output[0][0]

    arms: dict[str, Arm] = {
        "ours": lambda: pipeline(Request(options.prompt, options.seed, call, output_type="np"))[0][0],
        "inference": lambda: bare(torch.inference_mode),
        "again": lambda: bare(torch.inference_mode),
        "no_grad": lambda: bare(torch.no_grad),
    }
    pictures = {name: arm() for name, arm in arms.items()}
    for name, picture in pictures.items():
        if picture.tobytes() != pictures["inference"].tobytes():
            raise SystemExit(f"{name} and inference give different pictures; nothing was timed")
    print(_machine(device))
    print(
        f"{options.model}: {options.size}x{options.size}, {options.steps} steps, {options.calls} rounds; bitwise equal"
    )
    _report(_measure(arms, options.warmup, options.calls, random.Random(options.seed)))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/emoji-dit", help="a diffusers directory (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="a torch device (default: %(default)s)")
    parser.add_argument("--calls", type=int, default=100, help="timed rounds (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=10, help="rounds before those (default: %(default)s)")
    parser.add_argument("--size", type=int, default=16, help="height and width in pixels (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=4, help="inference steps (default: %(default)s)")
    parser.add_argument("--prompt", default="a red apple", help="text (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise and of the order (default: %(default)s)")
    options = parser.parse_args()
    if options.calls < 1 or options.warmup < 0:
        parser.error("--calls must be at least 1 and --warmup at least 0")
    return options


Seconds = dict[str, np.ndarray]
"""By arm, one for each timed round."""


def _measure(arms: dict[str, Arm], warmup: int, calls: int, order: random.Random) -> dict[str, Seconds]:
    """By clock. The picture is an array on the host, so a call's work is done. The processor's clock leaves out the
    time in which other programs have the core."""
    clocks = {"wall clock": time.perf_counter, "processor": time.process_time}
    seconds: dict[str, dict[str, list[float]]] = {clock: {name: [] for name in arms} for clock in clocks}
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        for number in range(warmup + calls):
            for name in order.sample(list(arms), len(arms)):
                gc.collect()
                start = {clock: read() for clock, read in clocks.items()}
                arms[name]()
                if number >= warmup:
                    for clock, read in clocks.items():
                        seconds[clock][name].append(read() - start[clock])
    finally:
        gc.enable()
        gc.unfreeze()
    return {clock: {name: np.array(values) for name, values in arms.items()} for clock, arms in seconds.items()}


def _report(clocks: dict[str, Seconds]) -> None:
    for clock, seconds in clocks.items():
        print(clock)
        for name, values in seconds.items():
            low, middle, high = np.percentile(values, (10, 50, 90)) * 1e3
            print(f"  {name:22} {middle:8.3f} ms    (10th-90th percentile {low:.3f}-{high:.3f})")
        for top, bottom in RATIOS:
            low, middle, high = np.percentile(seconds[top] / seconds[bottom], (10, 50, 90))
            if clock == "processor":
                note(f"a request: {top} / {bottom}", seconds[top] / seconds[bottom], AIMS.get(top))
            print(f"  {top + ' / ' + bottom:22} {middle:8.4f}       (10th-90th percentile {low:.4f}-{high:.4f})")


def _machine(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} {device}"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, diffusers {diffusers.__version__}"
    return f"{name}, {torch.get_num_threads()} thread(s); {versions}"


if __name__ == "__main__":
    main()
