"""What requests take that are made together, on the software accelerator, which counts each byte: one window, and for
each further request what its paused calls hold."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves

import offload
from runner.groups.meter import Meter
from runner.pipeline.pipeline import Pipeline
from tests.distributed.placed import opened, request_of
from tests.ranks import World, on_ranks

# Large enough that a block's own values outweigh what a call holds between two blocks.
CALLS: dict[str, dict[str, Any]] = {
    "flux": {"height": 128, "width": 128, "num_inference_steps": 2},  # one call a step
    "qwenimage": {"height": 128, "width": 128, "num_inference_steps": 3},  # two, that share a pass
}
ROUND = {"flux": 1, "qwenimage": 2}  # calls a step


@dataclass
class Sizes:
    """Bytes of the tensors that go into the denoiser, come out of it, and go into one of its blocks."""

    inputs: int = 0
    outputs: int = 0
    block: int = 0


def bytes_of(*values: Any) -> int:
    tensors = {id(leaf): leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)}
    return sum(tensor.nbytes for tensor in tensors.values())


@contextmanager
def measured(pipeline: Pipeline) -> Iterator[Sizes]:
    sizes, denoiser = Sizes(), pipeline.stock.transformer
    offloader = offload.offloader_of(denoiser)
    assert offloader is not None

    def entered(_: Any, args: Any, kwargs: Any) -> None:
        sizes.inputs = max(sizes.inputs, bytes_of(args, kwargs))

    def left(_: Any, args: Any, output: Any) -> None:
        sizes.outputs = max(sizes.outputs, bytes_of(output))

    def at_block(_: Any, args: Any, kwargs: Any) -> None:
        sizes.block = max(sizes.block, bytes_of(args, kwargs))

    for hook in (entered, left, at_block):
        hook.__module__ = "offload"  # calls with a stranger's hooks inside are not interrupted
    handles = [denoiser.register_forward_pre_hook(entered, with_kwargs=True), denoiser.register_forward_hook(left)]
    handles += [
        block.register_forward_pre_hook(at_block, with_kwargs=True) for block in offloader.moving_blocks.values()
    ]
    try:
        yield sizes
    finally:
        for handle in handles:
            handle.remove()


def peak_of(pipeline: Pipeline, family: str, number: int, meter: Meter | None = None) -> int:
    """Bytes above what rests on the device, while so many requests are denoised."""
    requests = [request_of(family, index, "latent", **CALLS[family]) for index in range(number)]
    before = torch.accelerator.memory_allocated()
    torch.accelerator.reset_peak_memory_stats()
    pipeline.make_together(requests, [None] * number, lambda index, outcome, seconds: outcome() and None, meter=meter)
    return torch.accelerator.max_memory_allocated() - before


@pytest.mark.parametrize("family", CALLS)
@on_ranks(1, soft=True)
def test_each_further_request_takes_what_its_paused_calls_hold(world: World, family: str, path: Path) -> None:
    pipeline = opened(world, path, "placement.transformer.rest=host")
    with measured(pipeline) as sizes:
        peak_of(pipeline, family, 1)  # what is set up once, and what is learned of the calls
    meter = Meter(pipeline.components, world.device, pipeline.recorder)
    alone, three, five = peak_of(pipeline, family, 1, meter), *(peak_of(pipeline, family, number) for number in (3, 5))
    calls = ROUND[family]
    copies = calls * sizes.inputs if calls > 1 else 0
    paused = sizes.inputs + copies + calls * (sizes.outputs + sizes.block)
    each = (five - three) / 2  # with three, what is denoised takes more than encoding does
    told = f"{sizes}, alone {alone}, three {three}, five {five}, each {each:.0f} of {paused}, measured {meter.held}"
    assert each <= 1.1 * paused, told
    assert alone > 2 * paused, f"or the test says nothing: {told}"
    assert each <= meter.held <= 1.1 * paused, f"auto goes by another figure: {told}"
