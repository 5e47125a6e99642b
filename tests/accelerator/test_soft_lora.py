"""Adapters on software accelerators, chosen by prompts, in each placement: the pictures are the libraries' own."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from lora import arithmetic
from runner.job.prompts import read_prompts
from runner.job.results import Made
from runner.request import Request
from tests.distributed.placed import new_stock_of, opened, run_prompts
from tests.distributed.test_lora import CHOICES, INK, _made_by, _prompts
from tests.ranks import World, on_ranks

PLACEMENTS: dict[str, list[str]] = {
    "resident": [],
    "host": ["placement.default.rest=host"],
    "disk": ["placement.default.rest=disk", "placement.transformer.resident_blocks=2"],
    "shard": ["placement.default.share=shard"],
    "shard, host": ["placement.transformer.share=shard", "placement.transformer.rest=host"],
}


@pytest.mark.slow
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("mode", ["merge", "dynamic"])
@on_ranks(1, 2, soft=True)
def test_prompts_choose_adapters_in_each_placement(world: World, emoji: Path, mode: str, placement: str) -> None:
    settings = [f"lora=[{{path: {INK}, name: ink}}]", f"lora.mode={mode}", *PLACEMENTS[placement]]
    pipeline = opened(world, emoji, *settings)
    file = _prompts(world.tmp_path, f"prompts-{world.rank}.jsonl")
    results, pictures = run_prompts(world, pipeline, world.tmp_path / "out", read_prompts(file))
    assert all(isinstance(result, Made) for result in results) and len(results) == len(CHOICES)
    for seed in range(world.rank, len(CHOICES), world.size):
        lora = CHOICES[seed]
        expected = _made_by(new_stock_of(emoji), mode, {"ink": 1.0} if lora is None else lora, seed)
        assert np.array_equal(pictures["a cat", seed], expected), (seed, lora)


class OtherProducts(TorchDispatchMode):
    """A merge's products on the device differ from the host's in the last bits, as a GPU's do."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func._schema.name in ("aten::mm", "aten::matmul") and args[0].device.type == "soft":
            frame: Any = sys._getframe(1)
            while "/torch/" in frame.f_code.co_filename:
                frame = frame.f_back
            if frame.f_code.co_filename == arithmetic.__file__:
                result.mul_(1 + 2**-16)
        return result


@pytest.mark.slow
@on_ranks(1, soft=True)
def test_a_merge_has_the_same_bits_everywhere_also_where_host_and_device_differ(world: World, emoji: Path) -> None:
    """A placement that merged on the host, where its weights rest, would have other weights than a resident one."""
    call = {"height": 64, "width": 64, "num_inference_steps": 1, "use_resolution_binning": False}
    request = Request("a cat", 0, {**call, "clean_caption": False}, {"ink": 1.0}, "np")
    pictures = {}
    for placement, settings in PLACEMENTS.items():
        pipeline = opened(world, emoji, f"lora=[{{path: {INK}, name: ink}}]", "lora.mode=merge", *settings)
        with OtherProducts():
            pictures[placement] = np.asarray(pipeline(request)[0][0])
        pipeline.close()
    plain = opened(world, emoji, f"lora=[{{path: {INK}, name: ink}}]", "lora.mode=merge")
    assert not np.array_equal(np.asarray(plain(request)[0][0]), pictures["resident"]), "or the device is the host"
    for placement, picture in pictures.items():
        assert np.array_equal(picture, pictures["resident"]), placement
