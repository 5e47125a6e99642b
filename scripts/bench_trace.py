"""What recording costs a request: what is always recorded, and what a trace (job.profile) adds.

  OMP_NUM_THREADS=1 python scripts/bench_trace.py [--rest disk] [--size 16]

Requests of the included model whose blocks all move, of 4 tokens, so that little arithmetic hides the cost. Two
pipelines over the same files, one of them with a trace, are interleaved; each round makes one request with each, in
random order. What is always recorded cannot be left out: what a request tells is counted, and timed alone.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import diffusers
import numpy as np
import torch
from bench.paired import measure, report
from bench.ratios import note

from runner.config import load_config
from runner.output.journal import Journal
from runner.pipeline.open import open_pipeline
from runner.pipeline.pipeline import Pipeline
from runner.request import Request
from runner.trace.clock import Start
from runner.trace.interval import Interval, Lane
from runner.trace.recorder import Details, Recorder
from runner.world import World

TOLD = 20_000  # times, to time one


def main() -> None:
    options = _parse()
    diffusers.logging.set_verbosity_error()
    world = World(0, 1, torch.device("cpu"))
    call = {"height": options.size, "width": options.size, "num_inference_steps": options.steps}
    call |= {"use_resolution_binning": False, "clean_caption": False}
    request = Request("a red apple", 0, call, output_type="np")
    with tempfile.TemporaryDirectory(prefix="bench_trace.") as folder:
        off, on = (_opened(options, world) for _ in range(2))
        file = Journal(Path(folder) / "intervals.jsonl")

        def keep(intervals: Sequence[Interval]) -> None:
            file.append([one.to_json() for one in intervals])

        on.trace(Details(Start(time.perf_counter(), time.time(), 0.0), keep))
        arms = {"off": lambda: _made(off, request), "trace": lambda: _made(on, request)}
        arms["again"] = arms["off"]
        for arm in arms.values():
            arm()
        told = _told(off.recorder) / 2  # `off` and `again`
        print(f"{options.model}, {options.size}x{options.size}, {options.steps} steps, rest={options.rest}")
        times = measure(arms, options.rounds, world)
        report(times, {"trace / off": ("trace", "off"), "again / off": ("again", "off")}, world, "a request")
    each = min(_cost() for _ in range(5))
    share = told * each / float(np.median(times.processor["off"]))
    print(f"always recorded: {told:.0f} of a request, {each * 1e6:.2f} us of the processor each: {share:.2%} of it")
    note("a request: with what is always recorded / without", [1 / (1 - share)], 1.005)


def _made(pipeline: Pipeline, request: Request) -> torch.Tensor:
    made = torch.as_tensor(np.asarray(pipeline(request)[0]))
    pipeline.recorder.settle()
    return made


def _told(recorder: Recorder) -> int:
    return sum(one.times for one in recorder.sums.values())


def _cost() -> float:
    """Seconds of the processor for one that is told and added up: two moments, and the telling."""
    recorder = Recorder()
    recorder.know("transformer", "denoise")
    with recorder.request("x"), recorder.component("transformer", "denoise", 1):
        start = time.thread_time()
        for _ in range(TOLD):
            recorder.tell("wait", Lane.wait, "transformer", "blocks.0", recorder.now(), recorder.now())
        told = time.thread_time() - start
    start = time.thread_time()
    recorder.settle()
    return (told + time.thread_time() - start) / TOLD


def _opened(options: argparse.Namespace, world: World) -> Pipeline:
    words = [f"model.path={options.model}", f"placement.default.rest={options.rest}"]
    return open_pipeline(load_config(None, words), world)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/emoji-dit", help="a diffusers directory (default: %(default)s)")
    parser.add_argument("--rest", default="disk", choices=("device", "host", "disk"), help="default: %(default)s")
    parser.add_argument("--size", type=int, default=16, help="height and width in pixels (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=10, help="inference steps (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=30, help="timed rounds (default: %(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
