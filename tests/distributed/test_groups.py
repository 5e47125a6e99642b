"""Requests that are made together share each pass over the weights, and give the bits of the stock pipeline."""

import dataclasses
import functools
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch.profiler import ProfilerActivity, profile

import offload
from runner.config import load_config
from runner.pipeline.open import open_pipeline
from runner.pipeline.pipeline import Pipeline
from runner.request import Request
from tests import tiny
from tests.distributed.placed import (
    call,
    call_together,
    expect_stock_bits_together,
    joined,
    opened,
    request_of,
    stock_bits,
)
from tests.lora.lora_files import save_adapter
from tests.ranks import World, on_ranks
from tests.resuming import with_scheduler


@pytest.fixture
def path(tiny_root: Path, family: str) -> Path:
    return tiny.build(family, tiny_root)


@pytest.mark.parametrize("family", ["wan22"])
@on_ranks(2)
def test_a_sharded_model_that_keeps_some_weights_in_fp32_is_made_in_groups(world: World, path: Path) -> None:
    pipeline = opened(world, path, "placement.default.share=shard", "model.dtype=bfloat16")
    kept = {parameter.dtype for component in pipeline.components for parameter in component.module.parameters()}
    assert kept == {torch.bfloat16, torch.float32}
    alone = [call(pipeline, "wan22", index) for index in (0, 1)]
    together = call_together(pipeline, [request_of("wan22", index) for index in (0, 1)])
    assert all(map(torch.equal, alone, together))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["flux"])
@on_ranks(4)
def test_two_sharded_copies_make_groups_of_their_own(world: World, path: Path) -> None:
    pipeline = opened(world, path, "placement.default.share=shard", "mesh.shard=2", "mesh.replicate=2")
    number = 3 if world.rank < 2 else 2  # the copies need not even make as many
    expect_stock_bits_together(pipeline, "flux", path, world.rank, (number,))


@pytest.mark.parametrize("family", ["flux", "wan"])
@on_ranks(1)
def test_requests_of_other_sizes_and_steps_share_a_pass(world: World, family: str, path: Path) -> None:
    pipeline = opened(world, path, "placement.default.rest=disk")
    differs: list[dict[str, Any]] = [{}, {"num_inference_steps": 1}, {"height": 32}, {"num_inference_steps": 5}, {}]
    requests = [request_of(family, index, **one) for index, one in enumerate(differs)]
    alone = opened(world, path)
    for request, made in zip(requests, call_together(pipeline, requests), strict=True):
        assert torch.equal(made, torch.as_tensor(alone(request)[0][0])), request


@pytest.mark.parametrize("family", ["qwenimage"])
@on_ranks(1)
def test_one_request_has_learned_its_calls_and_the_others_have_not(world: World, path: Path) -> None:
    """Prompts of other lengths: the first one's two calls share a pass from the first step on, and end while the
    others' second calls have yet to begin."""
    pipeline = opened(world, path, "placement.transformer.rest=disk")
    call(pipeline, "qwenimage", 0)
    made = call_together(pipeline, [request_of("qwenimage", index) for index in range(3)])
    for index, picture in enumerate(made):
        assert torch.equal(picture, stock_bits("qwenimage", path, index)), index


@pytest.mark.parametrize("family", ["flux"])
@on_ranks(1)
def test_weights_cross_once_for_all(world: World, path: Path) -> None:
    pipeline = opened(world, path, "placement.default.rest=disk", "placement.vae.rest=device")
    movers = {c.name: o for c in pipeline.components if (o := offload.offloader_of(c.module)) is not None}
    assert list(movers) == ["text_encoder", "text_encoder_2", "transformer"]
    call(pipeline, "flux", 0)

    def crossed(number: int) -> dict[str, tuple[int, int]]:
        before = {name: (o.traffic.num_bytes, o.traffic.fetches) for name, o in movers.items()}
        call_together(pipeline, [request_of("flux", index) for index in range(number)])
        return {
            name: (o.traffic.num_bytes - before[name][0], o.traffic.fetches - before[name][1])
            for name, o in movers.items()
        }

    alone = crossed(1)
    assert alone["transformer"][1] == 6 * 3, "six blocks, three steps"
    assert crossed(2) == crossed(5) == alone


@pytest.mark.parametrize("family", ["flux"])
@on_ranks(2)
def test_weights_are_gathered_once_for_all(world: World, path: Path) -> None:
    pipeline = opened(world, path, "placement.default.share=shard", "placement.vae.share=replicate")

    def gathers(number: int) -> dict[str, int]:
        with profile(activities=[ProfilerActivity.CPU]) as trace:
            call_together(pipeline, [request_of("flux", world.rank + index) for index in range(number)])
        return {e.key: e.count for e in trace.key_averages() if e.key.startswith("FSDP::all_gather (")}

    alone = gathers(1)
    assert alone["FSDP::all_gather (transformer_blocks.1)"] == 3 and len(alone) > 6
    assert gathers(2) == gathers(5) == alone


@pytest.mark.parametrize("family", ["flux"])
@on_ranks(1)
def test_no_more_is_on_the_device_than_for_one_and_no_block_is_up_for_nobody(world: World, path: Path) -> None:
    pipeline = opened(world, path, "placement.default.rest=host")
    movers = {c.name: o for c in pipeline.components if (o := offload.offloader_of(c.module)) is not None}
    most: dict[str, int] = {}
    order: list[str] = []

    def note(name: str, *_: object) -> None:
        if not order or order[-1] != name:
            order.append(name)
        for other, offloader in movers.items():
            most[other] = max(most.get(other, 0), offloader.bytes_on_device)

    note.__module__ = "offload"  # calls with a stranger's hooks inside are not interrupted
    for component in pipeline.components:
        for name, inner in component.module.named_modules():
            if name.count(".") == 1 and name.split(".")[-1].isdigit():
                inner.register_forward_hook(functools.partial(note, name))
    call_together(pipeline, [request_of("flux", index) for index in range(4)])
    for name, offloader in movers.items():
        assert most[name] <= offloader.bytes_bound, name
    names = [f"transformer_blocks.{i}" for i in range(3)] + [f"single_transformer_blocks.{i}" for i in range(3)]
    assert [name for name in order if "transformer_blocks" in name] == names * 3, "each block once a step, for all four"


@contextmanager
def noisy(denoiser: type) -> Iterator[None]:
    """A denoiser whose result depends on what it draws: before its blocks from each global generator, and after them
    from torch's."""
    forward: Any = denoiser.forward  # type: ignore[attr-defined]

    def drawn() -> float:
        return torch.rand(1).item() + float(np.random.normal()) + random.random()

    @functools.wraps(forward)
    def drawing(self: Any, *args: Any, **kwargs: Any) -> Any:
        before = drawn()
        output = forward(self, *args, **kwargs)
        (sample,) = output if isinstance(output, tuple) else (output.sample,)
        sample += (before + torch.rand(1).item()) / 10
        return output

    denoiser.forward = drawing  # type: ignore[attr-defined]
    try:
        yield
    finally:
        denoiser.forward = forward  # type: ignore[attr-defined]


@pytest.mark.parametrize("family", ["flux", "pixart", "wan"])
@on_ranks(1)
def test_schedulers_that_draw_from_the_global_generators_draw_their_own(world: World, family: str, path: Path) -> None:
    stochastic = {"flux": "flux *", "pixart": "pixart ancestral *", "wan": "wan sde *"}[family]
    pipeline, alone = opened(world, path, "placement.transformer.rest=disk"), opened(world, path)
    for one in (pipeline, alone):
        with_scheduler(stochastic, one.stock)
    requests = [request_of(family, index) for index in range(3)]
    for request, made in zip(requests, call_together(pipeline, requests), strict=True):
        assert torch.equal(made, torch.as_tensor(alone(request)[0][0]))


@pytest.mark.parametrize("family", ["flux"])
@pytest.mark.parametrize("placement", ["rest=device", "rest=disk"])
@on_ranks(1)
def test_each_turn_finds_the_global_generators_where_it_left_them(world: World, path: Path, placement: str) -> None:
    """Whole calls that take turns, and calls that are paused at their blocks: but blocks draw from torch's alone."""
    requests = [request_of("flux", index) for index in range(3)]
    with noisy(FluxTransformer2DModel):
        pipeline = opened(world, path, f"placement.transformer.{placement}", "placement.text_encoder_2.rest=disk")
        alone = opened(world, path)
        expected = [torch.as_tensor(alone(request)[0][0]) for request in requests]
        made = call_together(pipeline, requests)
    assert not torch.equal(expected[0], stock_bits("flux", path, 0))
    assert all(torch.equal(one, other) for one, other in zip(made, expected, strict=True))


@pytest.mark.parametrize("family", ["flux"])
@on_ranks(1, 2)
def test_adapters_of_a_group(world: World, path: Path) -> None:
    """Merged once a pass, or beside the layers, where each request scales them for itself."""
    file = world.tmp_path / "ink"
    if world.rank == 0:
        save_adapter(tiny.load_stock(path), file, seed=3)
    joined(world).gather(None)
    for mode, placement in (("merge", "rest=disk"), ("dynamic", "rest=disk"), ("dynamic", "share=shard")):
        words = [f"lora.mode={mode}", f"lora.adapters=[{{path: {file}, name: ink}}]"]
        pipeline = opened(world, path, f"placement.transformer.{placement}", *words)
        alone = opened(world, path, *words)
        requests = []
        for index in range(3):
            differs = {"joint_attention_kwargs": {"scale": 0.5 + index}} if mode == "dynamic" else {}
            requests.append(dataclasses.replace(request_of("flux", index, **differs), lora={"ink": 0.8}))
        for request, made in zip(requests, call_together(pipeline, requests), strict=True):
            assert torch.equal(made, torch.as_tensor(alone(request)[0][0])), (mode, placement, request.seed)
        plain = torch.as_tensor(pipeline(request_of("flux", 0))[0][0])
        assert torch.equal(plain, stock_bits("flux", path, 0)), "adapters go with the group"


def test_modes_around_a_group_and_inside(tiny_root: Path) -> None:
    """A caller's own autocast and grad mode are not the turns', and are as they were after it."""
    path = tiny.build("flux", tiny_root)
    from runner.world import World as RunnerWorld

    pipeline: Pipeline = open_pipeline(
        load_config(None, [f"model.path={path}", "placement.default.rest=host", "execution.leave_inference=weights"]),
        RunnerWorld(0, 1, torch.device("cpu")),
    )
    seen: set[tuple[bool, bool, bool]] = set()

    def note(*_: Any) -> None:
        seen.add((torch.is_inference_mode_enabled(), torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))

    note.__module__ = "offload"
    for component in pipeline.components:
        for inner in component.module.modules():
            if not list(inner.children()):
                inner.register_forward_pre_hook(note)
    requests: list[Request] = [request_of("flux", index) for index in range(3)]
    with torch.enable_grad():
        made = call_together(pipeline, requests)
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    assert seen == {(True, False, False)}
    for index, picture in enumerate(made):
        assert torch.equal(picture, stock_bits("flux", path, index))
