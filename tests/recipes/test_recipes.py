"""The recipes in configs/models fit the machines that they are for, and say so."""

import inspect
import math
import re
from pathlib import Path

import diffusers
import pytest

from runner.config import load_config
from runner.errors import UserError
from runner.inputs.arguments import arguments_of
from tests.recipes.real_sizes import MODELS, components
from tests.recipes.recipes import FOLDER, MACHINES, PIPELINES, ROOM, Arrangement, arrangements, bases, comment
from weights.tied import find_weights

DOCS = Path(__file__).parents[2] / "docs" / "models.md"
GB = 1e9
ALL = arrangements()


def test_every_file_is_known() -> None:
    assert sorted(MODELS) == bases() == sorted(PIPELINES)
    assert {file for arrangement in ALL for file in arrangement.files} == set(FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("base", bases())
def test_a_base_asks_for_the_models_directory_and_calls_its_pipeline_rightly(base: str) -> None:
    with pytest.raises(UserError, match=r"model\.path has to be given"):
        load_config(FOLDER / f"{base}.yaml", [])
    config = Arrangement(base).load()
    arguments_of(getattr(diffusers, PIPELINES[base])).check(config.job.call)
    taken = inspect.signature(getattr(diffusers, PIPELINES[base]).__init__).parameters
    assert set(MODELS[base]) | set(config.components) <= set(taken)


@pytest.mark.slow
@pytest.mark.parametrize("arrangement", ALL, ids=str)
def test_the_weights_leave_room_on_the_machine(arrangement: Arrangement) -> None:
    memory, _ = MACHINES[arrangement.machine]
    assert set(arrangement.load().placement) <= set(MODELS[arrangement.base]) | {"default"}
    assert arrangement.fit().device <= (memory - ROOM[memory]) * GB


@pytest.mark.slow
@pytest.mark.parametrize("arrangement", ALL, ids=str)
def test_what_a_recipe_says_of_memory_is_so(arrangement: Arrangement) -> None:
    said = comment(arrangement.files[-1])
    if match := re.search(r"(\d+) GB of host memory", said):
        assert arrangement.fit().host <= int(match[1]) * GB
    if match := re.search(r"Weights: (\d+) GB", said):
        assert math.isclose(_all_weights(arrangement), int(match[1]), abs_tol=0.6)


def _all_weights(arrangement: Arrangement) -> float:
    """GB, in the dtypes of the recipe."""
    config = arrangement.load()
    sizes = {"float32": 4, "bfloat16": 2}
    total = 0
    for name, module in components(arrangement.base).items():
        own = config.components.get(name)
        dtype = (own.dtype if own and own.dtype else config.model.dtype).value
        total += sum(weight.tensor.numel() for weight in find_weights(module)) * sizes[dtype]
    return total / GB


@pytest.mark.slow
def test_the_table_in_the_docs_is_worked_out_from_the_recipes() -> None:
    assert table() in DOCS.read_text(), f"write this into {DOCS.name}:\n{table()}"


def table() -> str:
    """A row for each model: GB on each device, and on the host, for each machine."""
    rows = ["| model | one of 24 GB | one of 80 GB | eight of 80 GB |", "| --- | --- | --- | --- |"]
    for base in bases():
        cells = []
        for machine in ("24gb", "", "8x80gb"):
            found = next((one for one in ALL if (one.base, one.machine) == (base, machine)), None)
            if found is None:
                found = Arrangement(base)
                fits = found.fit().device <= (24 - ROOM[24]) * GB
                cells.append("the same" if machine == "8x80gb" or fits else "-")
                continue
            name = "" if found.over is None else f"`{found.over.name}`: "
            host = f", host {math.ceil(found.fit().host / GB)}" if found.fit().host else ""
            cells.append(f"{name}{found.fit().device / GB:.0f}{host}")
        rows.append(f"| `{base}.yaml` | {' | '.join(cells)} |")
    return "\n".join(rows)
