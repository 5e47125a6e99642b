"""Adapters in the main job, in real processes: chosen for each prompt, on two ranks, also where they are sharded."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel

from runner.job.prompts import read_prompts
from runner.job.results import Made
from tests import tiny
from tests.distributed.placed import new_stock_of, opened, run_prompts
from tests.distributed.test_generate import device_of_jobs, generate, manifest
from tests.ranks import World, on_ranks

INK = Path(__file__).resolve().parents[2] / "models/emoji-dit-lora-ink"
CHOICES: list[dict[str, float] | None] = [None, {}, {"ink": 0.5}, None, {"ink": 0.5}]
CALL = {"height": 64, "width": 64, "num_inference_steps": 2, "guidance_scale": 3.0, "use_resolution_binning": False}


@pytest.mark.parametrize(
    ("mode", "placement"),
    [
        ("merge", "replicate"),
        ("dynamic", "shard"),
        pytest.param("merge", "shard", marks=pytest.mark.slow),
        pytest.param("dynamic", "replicate", marks=pytest.mark.slow),
    ],
)
def test_prompts_choose_adapters_on_two_ranks(mode: str, placement: str, emoji: Path, tmp_path: Path) -> None:
    result = generate(
        2,
        f"lora=[{{path: {INK}, name: ink}}]",
        f"lora.mode={mode}",
        f"placement.transformer.share={placement}",
        f"job.prompts={_prompts(tmp_path)}",
        "job.images_per_prompt=1",
        "job.format=npy",
        f"job.output={tmp_path / 'out'}",
    )
    assert result.returncode == 0, result.stderr
    made = {line["seed"]: line for line in manifest(tmp_path / "out")}
    assert [made[seed].get("lora") for seed in range(5)] == [
        {"ink": 1.0},
        None,
        {"ink": 0.5},
        {"ink": 1.0},
        {"ink": 0.5},
    ]
    for seed, lora in enumerate(CHOICES):
        expected = _made_by(
            tiny.load_stock(emoji).to(device_of_jobs(2)), mode, {"ink": 1.0} if lora is None else lora, seed
        )
        assert np.array_equal(np.load(tmp_path / "out" / made[seed]["file"]), expected), (seed, lora)


OFFLOADED = {
    "host": ["placement.default.rest=host"],
    "disk": ["placement.default.rest=disk", "placement.transformer.resident_blocks=2"],
    "host, beside a sharded one": ["placement.default.rest=host", "placement.text_encoder.share=shard"],
}


@pytest.mark.parametrize("placement", OFFLOADED)
@pytest.mark.parametrize("mode", ["merge", "dynamic"])
@on_ranks(2)
def test_prompts_choose_adapters_of_offloaded_components(world: World, emoji: Path, mode: str, placement: str) -> None:
    """Of the three waves, one has a request for one rank only: the other edits its share all the same."""
    settings = [f"lora=[{{path: {INK}, name: ink}}]", f"lora.mode={mode}", *OFFLOADED[placement]]
    pipeline = opened(world, emoji, *settings)
    file = _prompts(world.tmp_path, f"prompts-{world.rank}.jsonl")
    results, pictures = run_prompts(world, pipeline, world.tmp_path / "out", read_prompts(file))
    assert all(isinstance(result, Made) for result in results) and len(results) == len(CHOICES)
    for seed in range(world.rank, len(CHOICES), world.size):
        lora = CHOICES[seed]
        expected = _made_by(new_stock_of(emoji), mode, {"ink": 1.0} if lora is None else lora, seed)
        assert np.array_equal(pictures["a cat", seed], expected), (seed, lora)


def _prompts(folder: Path, name: str = "prompts.jsonl") -> Path:
    rows = [
        {"prompt": "a cat", "seed": seed, **CALL, **({} if lora is None else {"lora": lora})}
        for seed, lora in enumerate(CHOICES)
    ]
    (folder / name).write_text("\n".join(map(json.dumps, rows)))
    return folder / name


def _made_by(pipeline: Any, mode: str, lora: dict[str, float], seed: int) -> np.ndarray:
    """By the stock pipeline, with the adapter that the peft library lays over it."""
    if lora:
        adapted = PeftModel.from_pretrained(
            pipeline.transformer, str(INK), adapter_name="ink", autocast_adapter_dtype=False
        )
        for layer in adapted.modules():
            if hasattr(layer, "set_scale"):
                layer.set_scale("ink", lora["ink"])
        if mode == "merge":
            adapted.merge_adapter()
    with torch.inference_mode():
        generator = torch.Generator().manual_seed(seed)
        return pipeline(["a cat"], **CALL, clean_caption=False, generator=generator, output_type="np")[0][0]
