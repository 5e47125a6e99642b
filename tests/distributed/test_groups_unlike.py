"""Requests of other tasks in one group: with pictures, with clips, with neither, and with several outputs each."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist
import yaml
from diffusers.utils import load_image

from runner.config import load_config
from runner.run import run
from tests import tiny
from tests.census.arms import line_differs, stock_outputs, write_case
from tests.census.case import CLIP, OTHER, PICTURE, replaced
from tests.census.cases import CASES
from tests.census.files import write_file
from tests.distributed.placed import joined
from tests.ranks import World, on_ranks

# Of one directory: what one request is called with beside the others of its group.
UNLIKE: dict[str, list[Mapping[str, Any]]] = {
    "Flux2Pipeline": [{"image": [PICTURE, OTHER]}, {}, {"image": PICTURE}],
    "LTX2ConditionPipeline": [  # clips, each with its sound
        {"conditions": [{"frames": PICTURE, "index": 0, "crf": 0}]},
        {},
        {"conditions": [{"frames": CLIP, "index": 1, "strength": 0.8}]},
    ],
}
PLACED = {1: ["placement.default.rest=disk", "job.group=3"], 2: ["placement.default.share=shard", "job.group=2"]}


def _written(row: Mapping[str, Any]) -> dict[str, Any]:
    return replaced(row, lambda file: file.written())


@pytest.mark.slow
@pytest.mark.parametrize("name", UNLIKE)
@on_ranks(1, 2)
def test_with_and_without_pictures_and_clips(world: World, name: str) -> None:
    """On one rank one of each; on two, which share weights and so are in step, each makes two of the first kind."""
    rows, folder = UNLIKE[name] if world.size == 1 else UNLIKE[name][:1] * 4, world.tmp_path
    common = {key: value for key, value in CASES[name].call.items() if key not in ("image", "conditions")}
    case = dataclasses.replace(CASES[name], call=common)
    if world.rank == 0:
        write_case(case, folder)
        for file in (PICTURE, OTHER, CLIP):
            write_file(folder, file.name)
        lines = [{"prompt": case.prompt, "seed": seed, **_written(row)} for seed, row in enumerate(rows)]
        (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    dist.barrier()
    output = folder / "out"
    settings = [f"job.output={output}", *PLACED[world.size], *case.settings]
    assert run(load_config(folder / "job.yaml", settings), joined(world)) == 0
    if world.rank == 0:
        made = {line["seed"]: line for line in map(json.loads, (output / "manifest.jsonl").read_text().splitlines())}
        assert sorted(made) == list(range(len(rows)))
        for seed, row in enumerate(rows):
            [wanted] = stock_outputs(dataclasses.replace(case, call={**common, **row}), folder, [seed])
            assert line_differs(output, made[seed], wanted) == "", (row, seed)
        begun = [json.loads(line).get("started", []) for line in (output / "attempts.jsonl").read_text().splitlines()]
        assert max(map(len, begun)) == (3 if world.size == 1 else 4), "they were made together"


@pytest.mark.parametrize("name", ["modular_qwenimage"])
@on_ranks(1)
def test_other_blocks_of_one_modular_pipeline(world: World, path: Path, name: str) -> None:
    """From text, and from a picture: two workflows, whose calls share each pass."""
    family, folder = tiny.MODULAR[name], world.tmp_path
    write_file(folder, PICTURE.name)
    tasks: list[dict[str, Any]] = [{}, {"image": PICTURE.name, "strength": 0.4}, {}]
    rows = [{"prompt": family.prompts[seed], "seed": seed, **family.call, **task} for seed, task in enumerate(tasks)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = {"prompts": str(folder / "prompts.jsonl"), "format": "npy", "output": str(folder / "out"), "group": 3}
    (folder / "job.yaml").write_text(yaml.safe_dump({"model": {"path": str(path)}, "job": job}))
    config = load_config(folder / "job.yaml", ["placement.default.rest=disk"])
    assert run(config, joined(world)) == 0
    stock, image = tiny.load_modular(path), load_image(str(folder / PICTURE.name))
    for line in map(json.loads, (folder / "out" / "manifest.jsonl").read_text().splitlines()):
        given = {**tasks[line["seed"]], **({"image": image} if tasks[line["seed"]] else {})}
        expected = tiny.call_modular(stock, family, line["prompt"], line["seed"], **given)[0]
        assert np.array_equal(np.load(folder / "out" / line["file"]), expected), line["seed"]


@pytest.fixture
def path(name: str, tiny_root: Path) -> Path:
    return tiny.build(name, tiny_root)
