"""Teams that the runner chooses: by the number of requests, told with the reason, and kept by a folder once begun."""

import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from runner.config import load_config
from runner.errors import UserError
from runner.run import explain, run
from runner.world import World as RunnerWorld
from tests import tiny
from tests.distributed.placed import joined, new_stock_of
from tests.distributed.test_context_forwards import difference
from tests.ranks import World, on_ranks

GUIDED = {"true_cfg_scale": 3.0, "negative_prompt": "blurry"}
PROMPTS = ["a red fox", "a blue whale", "an old clock"]


@pytest.fixture
def path(tiny_root: Path) -> Path:
    return tiny.build("flux", tiny_root)


def made(world: World, path: Path, prompts: list[str], *words: str, ranks: RunnerWorld | None = None) -> dict[str, Any]:
    """A job on the test's ranks, in the one folder of the test; what run.json says of it."""
    output = world.tmp_path / "out"
    job = {"prompt": prompts, "format": "npy", "output": str(output), "call": {**tiny.FAMILIES["flux"].call, **GUIDED}}
    file = world.tmp_path / f"job-{world.rank}.yaml"
    file.write_text(yaml.safe_dump({"model": {"path": str(path)}, "job": {**job, "report": False}}))
    assert run(load_config(file, words), ranks or joined(world)) == 0
    joined(world).gather(None)  # rank 0 has written
    return json.loads((output / "run.json").read_text())


def apart(world: World, path: Path) -> list[float]:
    """How far each picture is from the stock one."""
    family, stock, output = tiny.FAMILIES["flux"], new_stock_of(path), world.tmp_path / "out"
    guided = tiny.TinyPipeline("flux", family.build, {**family.call, **GUIDED})
    lines = [json.loads(line) for line in (output / "manifest.jsonl").read_text().splitlines()]
    return [
        difference(
            torch.as_tensor(tiny.call_stock(stock, guided, line["prompt"], line["seed"])[0]),
            torch.as_tensor(np.load(output / line["file"])),
        )
        for line in lines
    ]


@on_ranks(2)
def test_one_request_has_its_calls_shared_out_and_more_have_a_team_each(world: World, path: Path) -> None:
    told = made(world, path, PROMPTS[:1], "mesh=auto")
    assert (told["team"]["guidance"], told["team"]["context"]) == (2, 1)
    assert "1 request(s) for 2 rank(s), and up to 2 separate calls a step" in told["team"]["chosen"]
    told = made(world, path, PROMPTS, "mesh=auto")
    assert (told["team"]["guidance"], told["team"]["context"], told["team"]["teams"]) == (1, 1, 2)
    assert "3 request(s) keep 2 team(s) busy" in told["team"]["chosen"]
    assert apart(world, path) == [0.0] * 3
    assert "mesh.context" not in json.loads((world.tmp_path / "out" / "recipe.json").read_text())


@on_ranks(2)
def test_it_is_explained_and_where_nothing_is_guided_tokens_are_shared_out(world: World, path: Path) -> None:
    words = [f"model.path={path}", "mesh=auto", "job.prompt=a red fox"]
    for more, numbers in (
        (["job.call.true_cfg_scale=3", "job.call.negative_prompt=blurry"], "2 x context 1"),
        ([], "1 x context 2"),
    ):
        told = io.StringIO()
        with redirect_stdout(told):
            assert explain(load_config(None, [*words, *more]), joined(world)) == 0
        if world.rank == 0:
            assert f"guidance {numbers}, since 1 request(s) for 2 rank(s)" in told.getvalue(), told.getvalue()


@on_ranks(2)
def test_a_folder_keeps_the_number_that_was_chosen_for_its_first_run(world: World, path: Path) -> None:
    """It decides last bits, so that another one would be another job."""
    words = ("mesh.guidance=1", "mesh.context=auto")
    told = made(world, path, PROMPTS[:1], *words)
    assert (told["team"]["guidance"], told["team"]["context"]) == (1, 2)
    assert json.loads((world.tmp_path / "out" / "recipe.json").read_text())["mesh.context"] == 2
    told = made(world, path, PROMPTS, *words)
    assert (told["team"]["context"], told["team"]["teams"], told["finished_before"]) == (2, 1, 1)
    assert "the folder was begun with mesh.context=2" in told["team"]["chosen"]
    assert max(apart(world, path)) <= 1e-5
    alone = RunnerWorld(0, 1, torch.device("cpu"))
    with pytest.raises(UserError, match=r"was begun with mesh\.context=2, .* 1 rank\(s\) do not divide"):
        made(world, path, PROMPTS, *words, ranks=alone)
