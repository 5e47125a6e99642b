"""Offloaded pipelines give the bits of the stock one, and hold on the device what the placement says."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import offload
from runner.components.resolver import ExecutionMode
from runner.config import load_config
from runner.errors import UserError
from runner.pipeline.open import open_pipeline
from tests import tiny
from tests.distributed.placed import call, expect_stock_bits_in_both_scopes, joined, opened, stock_bits
from tests.distributed.test_generate import ENVIRONMENT, ROOT, manifest
from tests.ranks import World, on_ranks

# Every component is offloaded so; the DiT keeps the resident blocks.
ROWS = {
    "host": ["rest=host"],
    "host, one at a time": ["rest=host", "window=1"],
    "host, whole": ["rest=host", "window=all"],
    "disk": ["rest=disk", "window=3"],
    "disk, some resident": ["rest=disk"],
}


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("family", tiny.FAMILIES)
@on_ranks(2)
def test_each_way_of_offloading_gives_the_stock_bits_in_both_scopes(
    world: World, family: str, path: Path, row: str
) -> None:
    overrides = [f"placement.default.{option}" for option in ROWS[row]]
    if "some resident" in row:
        overrides.append("placement.transformer.resident_blocks=1")
    pipeline = opened(world, path, *overrides)
    expect_stock_bits_in_both_scopes(world, pipeline, family, path, {c.name for c in pipeline.components})
    for component in pipeline.components:
        offloader = offload.offloader_of(component.module)
        assert offloader is not None and not offloader.is_up, "a finished request leaves only what is resident"
        assert offloader.bytes_on_device == offloader.bytes_at_rest == component.num_bytes
        offloader.store.close()


@pytest.mark.parametrize("family", ["flux", "wan22", "dit"])
@on_ranks(1)
def test_one_rank_offloads_too(world: World, family: str, path: Path) -> None:
    pipeline = opened(world, path, "placement.default.rest=disk", "placement.vae.rest=host")
    expect_stock_bits_in_both_scopes(world, pipeline, family, path, {c.name for c in pipeline.components})


@on_ranks(2)
def test_sharded_and_offloaded_components_work_together(world: World, paths: dict[str, Path]) -> None:
    path = paths["flux"]
    placements = ["placement.text_encoder_2.rest=disk", "placement.transformer.share=shard", "placement.vae.rest=host"]
    pipeline = opened(world, path, *placements, "execution.leave_inference=weights")
    assert [str(c.placement) for c in pipeline.components] == [
        "replicate, device",
        "replicate, disk",
        "shard 2, device",
        "replicate, host",
    ]
    assert {d.mode for d in pipeline.decisions.values()} == {ExecutionMode.INFERENCE}
    for index in (world.rank, 2, 2):
        assert torch.equal(call(pipeline, "flux", index), stock_bits("flux", path, index))


@pytest.fixture
def paths(tiny_root: Path) -> dict[str, Path]:
    return {family: tiny.build(family, tiny_root) for family in ("flux", "qwenimage")}


@on_ranks(1)
def test_the_stage_that_is_over_has_left_the_device(world: World, paths: dict[str, Path]) -> None:
    pipeline = opened(world, paths["flux"], "placement.default.rest=host")
    found = {c.name: offload.offloader_of(c.module) for c in pipeline.components}
    seen: dict[str, dict[str, tuple[int, int, int]]] = {}

    def note(stage: str) -> None:
        seen[stage] = {n: (o.bytes_on_device, o.bytes_at_rest, o.bytes_bound) for n, o in found.items() if o}

    transformer, vae = pipeline.stock.transformer, pipeline.stock.vae
    transformer.single_transformer_blocks[0].register_forward_pre_hook(lambda *_: note("denoise"))
    vae.decoder.conv_in.register_forward_pre_hook(lambda *_: note("decode"))
    call(pipeline, "flux", 0)
    for stage, at_work in (("denoise", "transformer"), ("decode", "vae")):
        for name, (now, at_rest, bound) in seen[stage].items():
            assert at_rest < now <= bound if name == at_work else now == at_rest, (stage, name)


@on_ranks(1)
def test_the_next_stages_head_comes_up_where_that_raises_no_peak(world: World, paths: dict[str, Path]) -> None:
    pipeline = opened(world, paths["flux"], "placement.transformer.rest=host")
    transformer = offload.offloader_of(pipeline.stock.transformer)
    seen: list[int] = []
    pipeline.stock.text_encoder_2.register_forward_hook(lambda *_: seen.append(transformer.bytes_on_device))
    call(pipeline, "flux", 0)
    assert transformer is not None and seen[0] > transformer.bytes_at_rest

    pipeline = opened(world, paths["flux"], "placement.default.rest=host", "placement.text_encoder_2.window=all")
    offloaders = [offload.offloader_of(c.module) for c in pipeline.components]
    stages = {c.stage: 0 for c in pipeline.components}
    for component in pipeline.components:
        stages[component.stage] += component.moves.moving
    totals: list[int] = []
    for component in pipeline.components:
        for inner in component.module.modules():
            inner.register_forward_hook(lambda *_: totals.append(sum(o.bytes_on_device for o in offloaders if o)))
    call(pipeline, "flux", 0)
    at_rest = sum(o.bytes_at_rest for o in offloaders if o)
    assert max(totals) <= at_rest + max(stages.values())


@on_ranks(2)
def test_what_cannot_be_placed_is_refused_on_all_ranks(world: World, paths: dict[str, Path]) -> None:
    for override, message in (
        ("placement.transformer.resident_blocks=99", "there are 6 blocks; choose 0 to 6"),
        ("placement.transformer.prefetch=2", "has no prefetch"),
    ):
        config = load_config(None, [f"model.path={paths['flux']}", "placement.transformer.rest=disk", override])
        with pytest.raises(UserError, match=message):
            open_pipeline(config, joined(world))


def test_weights_that_change_during_a_run_end_it_with_their_name(emoji: Path, tmp_path: Path) -> None:
    """A file that is replaced while blocks are read from it: no wrong picture is made, and those that are made stay."""
    model, output = tmp_path / "model", tmp_path / "out"
    shutil.copytree(emoji, model)
    command = [sys.executable, ROOT / "scripts" / "generate.py", f"model.path={model}", "job.images_per_prompt=50"]
    command += ["placement.transformer.rest=disk", "job.prompt=a rocket", f"job.output={output}"]
    with subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not (output / "manifest.jsonl").is_file() or not (output / "manifest.jsonl").read_text():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        weights = next((model / "transformer").glob("*.safetensors"))
        os.truncate(weights, weights.stat().st_size // 2)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 4, errors
    last = errors.strip().splitlines()[-1]
    assert last.startswith("fault: rank 0") and str(weights) in last and "StoreError" in last, last
    lines = manifest(output)
    assert 1 <= len(lines) < 50 and all((output / line["file"]).is_file() for line in lines)
    assert json.loads((output / "run.json").read_text())["state"] == "fault"
