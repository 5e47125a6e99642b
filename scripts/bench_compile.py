"""What `execution.compile` gives and costs: requests with compiled blocks against the same ones as they are.

  OMP_NUM_THREADS=1 python scripts/bench_compile.py [--model DIRECTORY] [--size 64] [--rest disk]

Two pipelines over the same directory, interleaved in one process; each round makes one request with each, in random
order. The first request of the compiled one, with all that is compiled in it, is timed apart (torch keeps what it
compiled in a cache on disk: the first run ever on a machine takes longer than the ones after it).
"""

import argparse
import time

import diffusers
import numpy as np
import torch
from bench.paired import measure, report

from runner.config import load_config
from runner.pipeline.open import open_pipeline
from runner.pipeline.pipeline import Pipeline
from runner.request import Request
from runner.world import World


def main() -> None:
    options = _parse()
    diffusers.logging.set_verbosity_error()
    world = World(0, 1, torch.device("cpu"))
    call = {"height": options.size, "width": options.size, "num_inference_steps": options.steps}
    plain, compiled = (_opened(options, world, how) for how in ("false", options.compile))
    for name, value in (("use_resolution_binning", False), ("clean_caption", False)):
        if name in plain.arguments.takes:
            call[name] = value
    request = Request(options.prompt, 0, call, output_type="np")

    def made(pipeline: Pipeline) -> torch.Tensor:
        return torch.as_tensor(np.asarray(pipeline(request)[0]))

    expected = made(plain)
    start = time.perf_counter()
    picture = made(compiled)
    first = time.perf_counter() - start
    apart = ((picture - expected).square().mean() / expected.square().mean()).sqrt()
    print(f"{options.model}, {options.size}x{options.size}, {options.steps} steps, rest={options.rest}")
    print(f"rms of the difference, relative: {apart:.1e}; the first compiled request takes {first:.1f} s")
    arms = {"as it is": lambda: made(plain), "compiled": lambda: made(compiled), "again": lambda: made(plain)}
    ratios = {"compiled / as it is": ("compiled", "as it is"), "again / as it is": ("again", "as it is")}
    report(measure(arms, options.rounds, world), ratios, world)


def _opened(options: argparse.Namespace, world: World, how: str) -> Pipeline:
    words = [f"model.path={options.model}", f"execution.compile={how}", f"placement.default.rest={options.rest}"]
    return open_pipeline(load_config(None, words), world)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/emoji-dit", help="a diffusers directory (default: %(default)s)")
    parser.add_argument("--compile", default="true", choices=("true", "dynamic"), help="default: %(default)s")
    parser.add_argument("--rest", default="device", choices=("device", "host", "disk"), help="default: %(default)s")
    parser.add_argument("--size", type=int, default=64, help="height and width in pixels (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=10, help="inference steps (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=30, help="timed rounds (default: %(default)s)")
    parser.add_argument("--prompt", default="a red apple", help="default: %(default)s")
    return parser.parse_args()


if __name__ == "__main__":
    main()
