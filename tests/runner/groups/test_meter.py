"""What the weights take to come up is measured as it is, whatever computes meanwhile, behind which it goes on.

A reader that is slowed to a bandwidth says how long that has to be: bytes / bandwidth, and, where the machine is busy
and lets it sleep for longer, what its own clock says.
"""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import offload
from offload.offloaded import Offloaded
from runner.config import load_config
from runner.groups.meter import Meter
from runner.job.group_size import Figures, GroupSize, choose, figures_of
from runner.pipeline.open import open_pipeline
from runner.pipeline.pipeline import Pipeline
from runner.world import World
from tests import tiny
from tests.distributed.placed import request_of

STEPS = 3
Spent = dict[tuple[int, str], list[float]]  # seconds of each read, by store and unit


def opened(root: Path, *names: str) -> Pipeline:
    """With these components on disk."""
    words = [f"placement.{name}.rest=disk" for name in names]
    config = load_config(None, [f"model.path={tiny.build('flux', root)}", *words])
    return open_pipeline(config, World(0, 1, torch.device("cpu")))


def bytes_of(offloader: Offloaded) -> dict[str, int]:
    """That come up in a pass, by block."""
    return {name: offloader.store.packings[name].num_bytes for name in offloader.moving_blocks}


@contextmanager
def slowed(bandwidth: float) -> Iterator[Spent]:
    """Bytes a second; what each read took."""
    read, spent = offload.DiskStore.read, defaultdict(list)

    def slowly(self: Any, unit: str, out: torch.Tensor, *where: Any) -> None:
        start = time.perf_counter()
        read(self, unit, out, *where)
        time.sleep(max(0.0, out.numel() / bandwidth - (time.perf_counter() - start)))
        spent[id(self), unit].append(time.perf_counter() - start)

    offload.DiskStore.read = slowly  # type: ignore[method-assign]
    try:
        yield spent
    finally:
        offload.DiskStore.read = read  # type: ignore[method-assign]


def slow(module: nn.Module, seconds: float) -> None:
    """Each call of it; after it, so that the time of a pipeline's component is that of the pipeline's own code."""

    def hook(*_: Any) -> None:
        time.sleep(seconds)

    hook.__module__ = "offload"  # calls with a stranger's hooks inside are not interrupted
    module.register_forward_hook(hook)


def measured(pipeline: Pipeline) -> Figures:
    meter = Meter(pipeline.components, pipeline.world.device, pipeline.recorder)
    request = request_of("flux", 0, num_inference_steps=STEPS)
    pipeline.make_together([request], [None], lambda index, outcome, seconds: outcome() and None, meter=meter)
    figures = figures_of(meter, pipeline)
    assert figures is not None
    return figures


def expect_transfer(transfer: float, offloader: Offloaded, bandwidth: float, spent: Spent) -> None:
    store, a_pass = offloader.store, sum(bytes_of(offloader).values())
    known = a_pass / bandwidth
    reads = {unit: seconds for (of, unit), seconds in spent.items() if of == id(store)}
    num_bytes = sum(len(seconds) * store.packings[unit].num_bytes for unit, seconds in reads.items())
    by_the_reader = sum(map(sum, reads.values())) * a_pass / num_bytes
    assert 0.99 * known <= transfer <= 1.15 * by_the_reader, f"{known=} {by_the_reader=}"


@pytest.mark.parametrize(
    ("a_block", "a_step", "a_pass"),
    [(0.0, 0.0, 0.3), (0.0, 0.1, 0.3), (0.04, 0.0, 0.1)],
    ids=["nothing else takes long", "the pipeline's own code", "computing takes longer"],
)
def test_of_a_denoiser(tiny_root: Path, a_block: float, a_step: float, a_pass: float) -> None:
    """Blocks compute for so long, and the pipeline's own code after each call; the weights take `a_pass`."""
    pipeline = opened(tiny_root, "transformer")
    transformer = pipeline.stock.transformer
    offloader = offload.offloader_of(transformer)
    assert offloader is not None and len(offloader.moving_blocks) == 6
    for block in offloader.moving_blocks.values():
        slow(block, a_block)
    slow(transformer, a_step)
    bandwidth = sum(bytes_of(offloader).values()) / a_pass
    with slowed(bandwidth) as spent:
        figures = measured(pipeline)
    one = figures.components["transformer"]
    expect_transfer(one.transfer, offloader, bandwidth, spent)
    assert one.passes == STEPS and one.compute >= 6 * a_block + a_step
    if 6 * a_block > a_pass:
        assert one.compute > one.transfer, "hidden"
    else:
        assert choose([figures], 100).number > 1, figures


def test_a_group_is_measured_again_as_long_as_it_grows(tiny_root: Path) -> None:
    """Where a block's first call takes six times as long as those after it, one request says too much of each."""
    pipeline = opened(tiny_root, "transformer")
    offloader = offload.offloader_of(pipeline.stock.transformer)
    assert offloader is not None
    last: list[nn.Module] = []

    def hook(block: nn.Module, *_: Any) -> None:
        time.sleep(0.005 if last == [block] else 0.03)
        last[:] = [block]

    hook.__module__ = "offload"
    for block in offloader.moving_blocks.values():
        block.register_forward_hook(hook)
    size, sizes, computes, left = GroupSize("auto", pipeline), [], [], 240
    with slowed(sum(bytes_of(offloader).values()) / 0.36):
        while size.is_open:
            sizes.append(size.together)
            meter = size.meter()
            assert meter is not None
            requests = [request_of("flux", seed, num_inference_steps=STEPS) for seed in range(size.together)]
            pipeline.make_together(requests, [None] * len(requests), lambda *_: None, meter=meter)
            left -= len(requests)
            size.choose(meter, left)
            (figures,) = size.choice.figures
            assert figures.calls == len(requests)
            computes.append(figures.components["transformer"].compute)
    assert sizes[0] == 1 and len(sizes) > 1 and sizes == sorted(set(sizes)), sizes
    assert computes[0] >= 6 * 0.03 and 6 * 0.005 <= computes[-1] < computes[0], (sizes, computes)


def test_of_text_encoders_that_run_once(tiny_root: Path) -> None:
    pipeline = opened(tiny_root, "text_encoder", "text_encoder_2")
    movers = {name: offload.offloader_of(getattr(pipeline.stock, name)) for name in ("text_encoder", "text_encoder_2")}
    bandwidth = sum(sum(bytes_of(one).values()) for one in movers.values() if one is not None) / 0.4
    with slowed(bandwidth) as spent:
        figures = measured(pipeline)
    for name, offloader in movers.items():
        assert offloader is not None and offloader.moving_blocks
        one = figures.components[name]
        assert one.passes == 1
        expect_transfer(one.transfer, offloader, bandwidth, spent)
        outside = offloader.num_bytes - sum(bytes_of(offloader).values())
        assert one.once >= 0.9 * outside / bandwidth, "what is outside the blocks comes up once for all requests too"
    assert choose([figures], 100).number > 1, figures
