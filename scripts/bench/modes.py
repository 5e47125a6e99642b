"""Part `modes`: what the execution modes cost and save around a sharded DiT, in the stock pipeline's denoise loop.

All arms but `bare` take the runner's path: its boundaries around each call of the transformer, and its agreement of
the ranks before it. They differ in the mode only.

  no_grad     no_grad everywhere: the pipeline's own arithmetic, and the transformer
  component   the pipeline in inference mode, the transformer's calls in normal mode
  weights     inference mode throughout; FSDP is primed, so that only what moves weights leaves it
  again       `weights` once more: what the ratio is where nothing differs
  bare        the stock pipeline under no_grad, without the runner
"""

import functools
import time
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch

import sharding
from bench.cases import CASES, LAUNCH_BOUND, Case
from bench.paired import Arm, Spread, measure, refuse_unequal, report
from runner.calls.boundary import Boundaries
from runner.calls.lockstep import Lockstep
from runner.components.resolver import ExecutionMode, enter, resolve
from runner.components.stages import components_of
from runner.config import Leave
from runner.progress import Progress
from runner.world import World

AIM = 1 / 1.08  # weights at least 8 % faster than no_grad, where the model is launch-bound
_AIMS = {LAUNCH_BOUND.name: {"weights / no_grad": AIM}}
_RATIOS = {
    "weights / no_grad": ("weights", "no_grad"),
    "weights / component": ("weights", "component"),
    "component / no_grad": ("component", "no_grad"),
    "weights / bare": ("weights", "bare"),
    "again / weights (noise)": ("again", "weights"),
}


def run(world: World, scale: float) -> dict[str, Any]:
    """Time both cases and the agreement alone; rounds are multiplied by `scale`. Collective."""
    figures: dict[str, Any] = {}
    for case in CASES:
        if world.rank == 0:
            print(f"\nmodes, {case}; bitwise equal to the unsharded model", flush=True)
        arms = _arms(case, world)
        times = measure(arms, max(1, round(case.rounds * scale)), world)
        figures[case.name] = report(times, _RATIOS, world, f"sharded, {case.name}", _AIMS.get(case.name, {}))
        if world.rank == 0 and case is LAUNCH_BOUND:
            found = times.ratio("weights", "no_grad").median
            print(f"  aim: weights / no_grad <= {AIM:.3f} by the clock: {'held' if found <= AIM else 'MISSED'}")
    spread = _agreement(world)
    figures["agreement_seconds"] = spread
    if world.rank == 0:
        low, middle, high = (value * 1e6 for value in (spread.low, spread.median, spread.high))
        print(f"\nagreement of the ranks before a sharded call: {middle:.0f} us ({low:.0f} .. {high:.0f})", flush=True)
    return figures


def _arms(case: Case, world: World) -> dict[str, Arm]:
    """The arms, each checked against the unsharded model."""
    device = world.device
    request = case.request(device)
    with torch.no_grad():
        expected = case.pipeline(case.transformer(device))(**request)[0]
    transformer = sharding.shard(case.transformer(device), sharding.build_mesh(device.type))
    sharding.prime(transformer)
    pipeline = case.pipeline(transformer)
    components = components_of(pipeline)

    lockstep = Lockstep(world.control)
    decisions = {leave: resolve(components, leave) for leave in Leave}
    if decisions[Leave.weights]["transformer"].mode is not ExecutionMode.INFERENCE:
        raise SystemExit(f"leave_inference=weights is {decisions[Leave.weights]['transformer'].reason}; not timed")

    boundaries = Boundaries(components, decisions[Leave.component], device.type, lockstep, Progress())

    def placed(glue: AbstractContextManager[Any], leave: Leave) -> torch.Tensor:
        boundaries.decisions = decisions[leave]
        with lockstep.request(), glue, boundaries.request():
            return pipeline(**request)[0]

    def bare() -> torch.Tensor:
        with torch.no_grad():
            latents = pipeline(**request)[0]
            sharding.reshard(transformer)  # as the boundaries do at the end
        return latents

    inference = functools.partial(enter, ExecutionMode.INFERENCE, device.type)
    arms: dict[str, Arm] = {
        "no_grad": lambda: placed(torch.no_grad(), Leave.component),
        "component": lambda: placed(inference(), Leave.component),
        "weights": lambda: placed(inference(), Leave.weights),
        "again": lambda: placed(inference(), Leave.weights),
        "bare": bare,
    }
    refuse_unequal(arms, expected, world)
    return arms


def _agreement(world: World, calls: int = 2000, warmup: int = 200) -> Spread:
    lockstep = Lockstep(world.control)
    seconds = []
    for _ in range(warmup + calls):
        start = time.perf_counter()
        lockstep.meet("denoise/transformer.forward")
        seconds.append(time.perf_counter() - start)
    return Spread.of(np.array(seconds[warmup:]))
