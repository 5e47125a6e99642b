"""Each recipe, and what is laid over it, runs on a tiny model of the same classes, and makes the same pixels."""

import json
import shutil
from pathlib import Path

import pytest
import torch.distributed as dist
from diffusers import UniPCMultistepScheduler

from runner.run import run
from runner.world import World
from tests.census.arms import write_case
from tests.census.cases import CASES
from tests.distributed.placed import joined
from tests.ranks import World as TestWorld
from tests.ranks import Worlds, on_ranks
from tests.recipes.recipes import MACHINES, PIPELINES, Arrangement, arrangements, bases

# What Wan's own directories have, whose shift its recipes set.
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}


@pytest.mark.slow
@pytest.mark.parametrize("base", bases())
def test_a_recipe_makes_the_same_pixels_on_every_machine(base: str, worlds: Worlds, tmp_path: Path) -> None:
    case = CASES[PIPELINES[base]]
    if case.missing:
        pytest.skip(f"{case} needs {', '.join(case.missing)}")
    worlds.run(2, make.on_each_rank, tmp_path, {"base": base})  # type: ignore[attr-defined]
    pixels = {machine: _pixels(tmp_path / f"out{machine}") for _, machine in _arrangements(base)}
    assert len(set(pixels.values())) == 1, pixels


@on_ranks(2)
def make(world: TestWorld, base: str) -> None:
    """One machine of one GPU after the other on the first rank; on both, one of eight."""
    folder, alone = world.tmp_path, World(0, 1, world.device)
    if world.rank == 0:
        _write(base, folder)
    dist.barrier()
    for arrangement, machine in _arrangements(base):
        is_for_all = MACHINES[machine][1] > 1
        if is_for_all or world.rank == 0:
            config = arrangement.load(_words(arrangement, folder))
            code = run(config, joined(world) if is_for_all else alone)
            assert code == 0, f"{arrangement}: exit code {code}"
        dist.barrier()


def _arrangements(base: str) -> list[tuple[Arrangement, str]]:
    return [(one, one.machine) for one in arrangements() if one.base == base]


def _write(base: str, folder: Path) -> None:
    case = CASES[PIPELINES[base]]
    write_case(case, folder)
    model = folder / "model"
    listed = json.loads((model / "model_index.json").read_text())
    if "flow_shift" in Arrangement(base).files[0].read_text():
        UniPCMultistepScheduler(**FLOW).save_pretrained(model / "scheduler")
        listed["scheduler"] = ["diffusers", "UniPCMultistepScheduler"]
    if base.endswith("a14b") and not (model / "transformer_2").exists():
        shutil.copytree(model / "transformer", model / "transformer_2")
        listed |= {"transformer_2": listed["transformer"], "boundary_ratio": 0.9}
    (model / "model_index.json").write_text(json.dumps(listed))


def _words(arrangement: Arrangement, folder: Path) -> list[str]:
    """The recipe's own settings, at the sizes and step counts of a test, on a model of one or two blocks."""
    case = CASES[PIPELINES[arrangement.base]]
    small = {name: value for name, value in case.call.items() if _is_numbers(value)}
    words = [f"job.call.{name}={json.dumps(value)}" for name, value in small.items() if "guidance" not in name]
    words += [
        f"placement.{name}.resident_blocks=1"
        for name, placement in arrangement.load().placement.items()
        if placement.resident_blocks
    ]
    output = folder / f"out{arrangement.machine}"
    return [*words, f"model.path={folder}/model", f"job.prompts={folder}/prompts.jsonl", f"job.output={output}"]


def _is_numbers(value: object) -> bool:
    values = value if isinstance(value, list | tuple) else [value]
    return all(isinstance(one, int | float) for one in values)


def _pixels(output: Path) -> str:
    [line] = [json.loads(line) for line in (output / "manifest.jsonl").read_text().splitlines()]
    return line["sha256"]
