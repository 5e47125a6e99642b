"""Inputs on several ranks: looked at once by all together, and alike by what decides shapes, whatever they show."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.utils import load_image

import runner.inputs.checked
from runner.config import JobConfig
from runner.errors import UserError
from runner.job.prompts import Prompt, read_prompts
from runner.job.requests import with_inputs
from runner.job.results import Failed, Made
from tests import tiny
from tests.distributed.placed import joined, opened, run_prompts, stock_of
from tests.distributed.test_generate import generate
from tests.ranks import World, on_ranks
from tests.runner.inputs.input_files import draw
from tests.tiny.other_class import for_class

CALL = {"height": 16, "width": 16, "num_inference_steps": 2, "strength": 0.9, "max_sequence_length": 16}
SIZES = [(24, 16), (24, 16), (16, 24), (24, 16), (24, 16)]


@pytest.fixture(scope="module")
def model(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return for_class(tiny.build("flux", tiny_root), "FluxImg2ImgPipeline", tmp_path_factory.mktemp("classes"))


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Five requests with a picture each: four of one size, and one of another between them."""
    file = tmp_path / "p.jsonl"
    for number, size in enumerate(SIZES):
        draw(tmp_path / f"{number}.png", number, size)
    rows = [{"prompt": f"fox {n}", "image": f"{n}.png", "seed": n, **CALL} for n in range(len(SIZES))]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@on_ranks(2)
def test_unlike_pictures_of_one_size_are_made_in_one_wave_of_sharded_ranks(
    world: World, model: Path, prompts: Path
) -> None:
    pipeline = opened(world, model, "placement.default.share=shard")
    job = JobConfig(prompts=str(prompts))
    asked, _ = with_inputs(read_prompts(prompts), job, pipeline.arguments, joined(world).control)
    output = world.tmp_path / "out"
    results, pictures = run_prompts(world, pipeline, output, asked)
    assert [type(result) for result in results] == [Made] * 5
    tries = [json.loads(line)["started"] for line in (output / "attempts.jsonl").read_text().splitlines()]
    number = {result.request.id: result.request.number for result in results}
    assert [sorted(number[id] for id in ids) for ids in tries] == [[0, 1], [3, 4], [2]]
    if world.rank == 0:
        stock = stock_of(model)
        for seed in range(len(SIZES)):
            image = load_image(str(prompts.parent / f"{seed}.png"))
            with torch.inference_mode():
                generator = torch.Generator().manual_seed(seed)
                made = stock(f"fox {seed}", image=image, generator=generator, output_type="np", **CALL).images[0]
            assert np.array_equal(pictures[f"fox {seed}", seed], made)


@on_ranks(2, 3)
def test_each_file_is_read_by_one_rank_and_known_to_all(world: World, model: Path, prompts: Path) -> None:
    pipeline, read = opened(world, model), []
    hashed = runner.inputs.checked.sha256_of

    def counted(path: Path) -> str:
        read.append(path.name)
        return hashed(path)

    runner.inputs.checked.sha256_of = counted
    try:
        ranks = joined(world)
        twice = [*read_prompts(prompts), *read_prompts(prompts)]
        asked, _ = with_inputs(twice, JobConfig(prompts=str(prompts)), pipeline.arguments, ranks.control)
    finally:
        runner.inputs.checked.sha256_of = hashed
    everything = [name for names in ranks.gather(read) for name in names]
    assert sorted(everything) == [f"{number}.png" for number in range(5)]
    for prompt in asked:
        file = prompt.call["image"]
        assert file.sha256 == hashlib.sha256(file.path.read_bytes()).hexdigest()


@on_ranks(2)
def test_a_file_that_one_rank_cannot_see_is_refused_on_all(world: World, model: Path) -> None:
    """As on a node whose file system lacks it."""
    own = world.tmp_path / f"rank{world.rank}"
    own.mkdir()
    if world.rank == 0:
        draw(own / "a.png")
    pipeline, prompts = opened(world, model), [Prompt("a", call={"image": "a.png"})]
    with pytest.raises(UserError, match=r"prompt 1: image: a\.png: no such file \(relative to .*rank1\)"):
        with_inputs(prompts, JobConfig(prompts=str(own / "p.jsonl")), pipeline.arguments, joined(world).control)


@on_ranks(2)
def test_a_file_that_changes_or_goes_costs_its_request_and_no_other(world: World, model: Path, prompts: Path) -> None:
    pipeline = opened(world, model, "placement.default.share=shard")
    job = JobConfig(prompts=str(prompts))
    asked, _ = with_inputs(read_prompts(prompts), job, pipeline.arguments, joined(world).control)
    joined(world).gather(None)
    if world.rank == 0:
        draw(prompts.parent / "1.png", seed=99)
        (prompts.parent / "3.png").unlink()
    joined(world).gather(None)
    results, _ = run_prompts(world, pipeline, world.tmp_path / "out", asked)
    kinds = {result.request.seed: type(result) for result in results}
    assert kinds == {0: Made, 1: Failed, 2: Made, 3: Failed, 4: Made}
    failures = [result.failure for result in results if isinstance(result, Failed)]
    assert [failure.error for failure in failures] == ["InputLost"] * 2 and failures[0].stage == "read inputs"
    assert "1.png: has changed since the job began" in failures[0].message
    assert "3.png: cannot be read any more (No such file or directory)" in failures[1].message


@pytest.mark.slow
def test_a_damaged_picture_ends_the_command_in_one_line(model: Path, prompts: Path, tmp_path: Path) -> None:
    picture = prompts.parent / "2.png"
    picture.write_bytes(picture.read_bytes()[:100])
    settings = tmp_path / "own.yaml"
    settings.write_text(f"model: {{path: {model}}}\njob: {{prompts: {prompts}, output: {tmp_path / 'out'}}}\n")
    result = generate(2, str(settings))
    assert result.returncode != 0
    (said,) = (line for line in result.stderr.splitlines() if line.startswith("error: "))
    assert f"{prompts}:3: image: 2.png is damaged" in said
    assert not (tmp_path / "out").exists(), "before the folder is taken, and before weights are loaded"
