"""The main job on software accelerators, in real processes: every placement gives the stock pictures."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests import tiny
from tests.distributed.test_generate import ROOT, launch, manifest

PLACEMENTS: dict[str, list[str]] = {
    "resident": [],
    "host": ["rest=host"],
    "disk": ["rest=disk"],
    "shard": ["share=shard"],
    "shard-host": ["share=shard", "rest=host"],
    "shard-disk": ["share=shard", "rest=disk"],
}


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_every_placement_gives_the_stock_pictures(
    num_ranks: int, soft_is_built: None, tiny_root: Path, tmp_path: Path
) -> None:
    family, path = tiny.FAMILIES["flux"], tiny.build("flux", tiny_root)
    prompts = tmp_path / "prompts.jsonl"
    lines = [{"prompt": prompt, "seed": seed, **family.call} for seed, prompt in enumerate(family.prompts)]
    prompts.write_text("\n".join(map(json.dumps, lines)))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"model": {"path": str(path)}}))
    common = [str(recipe), f"job.prompts={prompts}", "job.format=npy"]
    jobs = [
        [*common, f"job.output={tmp_path / name}", *(f"placement.default.{option}" for option in options)]
        for name, options in PLACEMENTS.items()
    ]
    listing = tmp_path / "jobs"
    listing.write_text("\n".join(map(json.dumps, jobs)))
    result = launch(num_ranks, ROOT / "tests" / "accelerator" / "many_jobs_on_soft.py", str(listing))
    assert result.returncode == 0, result.stderr
    stock = tiny.load_stock(path)
    ranks: set[int] = set()
    for name in PLACEMENTS:
        made = manifest(tmp_path / name)
        ranks |= {line["rank"] for line in made}
        for seed, (line, prompt) in enumerate(zip(made, family.prompts, strict=True)):
            expected = tiny.call_stock(stock, family, prompt, seed)[0]
            assert np.array_equal(np.load(tmp_path / name / line["file"]), expected), f"{name}, prompt {seed}"
        report = json.loads((tmp_path / name / "run.json").read_text())
        peaks = [(rank["peak_device_bytes"], rank["peak_device_reserved_bytes"]) for rank in report["ranks"]]
        assert all(0 < allocated <= reserved for allocated, reserved in peaks), "it ran on the device"
    assert ranks == set(range(num_ranks))
