"""Real processes that make groups, and a request in them that goes wrong: what it costs the others is nothing.

Eight requests of two ranks are one wave of two groups of four.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from runner.output.folder import Folder
from runner.output.manifest import Manifest, State
from tests import tiny
from tests.distributed.chaos import ROOT, Job, leftovers, lines
from tests.distributed.placed import stock_picture

pytestmark = pytest.mark.slow
GOOD = ["a red fox", "a blue whale", "an old clock", "a rocket", "a panda", "a lighthouse", "a teapot"]
SABOTAGED = ROOT / "tests" / "distributed" / "sabotaged_generate.py"


@pytest.fixture
def path(tiny_root: Path) -> Path:
    return tiny.build("flux", tiny_root)


def run(path: Path, output: Path, prompts: list[str], *words: str, ranks: int = 2) -> State:
    """The job to its end, however that is; what its folder remembers."""
    file = output.with_name("prompts.jsonl")
    rows = [{"prompt": prompt, **tiny.FAMILIES["flux"].call} for prompt in prompts]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = output.with_name("recipe.yaml")
    recipe.write_text("job: {group: 4, format: npy}\n")
    settings = [str(recipe), f"model.path={path}", f"job.prompts={file}", *words]
    job = Job(output, settings, num_ranks=ranks, script=SABOTAGED)
    try:
        job.gone_after(240)
    finally:
        job.kill()
    print(job.log.read_text()[-4000:])
    state = Manifest(Folder(output)).recover()
    assert leftovers(output) == []
    return state


def report(output: Path) -> dict[str, object]:
    return json.loads((output / "run.json").read_text())


def expect_made(path: Path, output: Path, state: State, prompts: list[str]) -> None:
    """Exactly these, with the bits of the stock pipeline."""
    assert sorted(str(line.prompt) for line in state.finished.values()) == sorted(prompts)
    for line in state.finished.values():
        made = np.load(output / line.file)
        assert np.array_equal(made, stock_picture(path, str(line.prompt), line.seed)), line.prompt


def tries(output: Path, state: State) -> dict[str, int]:
    """By prompt, of those that are not made and have lost any."""
    names = {line.id: str(line.prompt) for line in state.failures.values()}
    return {names.get(id, id): n for id, n in state.attempts.items() if n and id not in state.finished}


@pytest.mark.parametrize("placement", ["rest=disk", "share=shard"])
def test_errors_in_the_pipelines_code_in_blocks_and_in_decoding_cost_one_request_each(
    placement: str, path: Path, tmp_path: Path
) -> None:
    """On one rank of two each. In a sharded block the other rank is inside too: that ends the job, see below."""
    places = ["encode", "glue", "decode"] + (["block"] if placement == "rest=disk" else [])
    bad = [f"raise in {place}" for place in places]
    prompts = [*GOOD[: 8 - len(bad)], *bad]
    output = tmp_path / "out"
    state = run(path, output, prompts, f"placement.transformer.{placement}")
    assert report(output)["state"] == "failed"
    expect_made(path, output, state, GOOD[: 8 - len(bad)])
    assert {failure.message for failure in state.failures.values()} == {"as told"}
    assert tries(output, state) == dict.fromkeys(bad, 1)


@pytest.mark.parametrize("how", ["raise in block", "kill in block"])
def test_a_failure_inside_a_sharded_call_ends_the_job_and_one_request_loses_a_try(
    how: str, path: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    expect_one_to_blame(path, output, how, "placement.transformer.share=shard")


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("how", ["kill in block", "kill in decode"])
def test_a_killed_process_costs_the_request_whose_turn_it_was_a_try(
    how: str, ranks: int, path: Path, tmp_path: Path
) -> None:
    """Also where no other rank is there to tell. The next run makes it alone, and the last one gives it up."""
    output = tmp_path / "out"
    expect_one_to_blame(path, output, how, "placement.transformer.rest=disk", ranks=ranks)


def expect_one_to_blame(path: Path, output: Path, how: str, *words: str, ranks: int = 2) -> None:
    prompts, keys = [*GOOD, how], [*words, "job.max_attempts=2"]
    state = run(path, output, prompts, *keys, ranks=ranks)
    started = {id for line in lines(output / "attempts.jsonl") for id in json.loads(line).get("started", [])}
    assert report(output)["state"] == ("running" if ranks == 1 else "fault")
    lost = {id for id, number in state.attempts.items() if number and id not in state.finished}
    assert len(lost) == 1 and len(started) >= 4
    state = run(path, output, prompts, *keys, ranks=ranks)  # it is made by itself now, and takes no other along
    assert {id for id, number in state.attempts.items() if number == 2} == lost
    state = run(path, output, prompts, *keys, ranks=ranks)
    assert report(output)["state"] == "failed"
    expect_made(path, output, state, GOOD)


def test_a_disk_that_cannot_be_read_ends_the_job_and_no_request_loses_a_try(path: Path, tmp_path: Path) -> None:
    """The next request would read the same file. Once the disk is well, the same command makes all the others."""
    output = tmp_path / "out"
    state = run(path, output, [*GOOD, "raise in store"], "placement.transformer.rest=disk")
    assert report(output)["state"] == "fault" and "as told" in str(report(output)["fault"])
    assert not any(number for id, number in state.attempts.items() if id not in state.finished)
    state = run(path, output, GOOD, "placement.transformer.rest=disk")
    assert report(output)["state"] == "done"
    expect_made(path, output, state, GOOD)


@pytest.mark.parametrize("group", [1, 4])
def test_a_device_that_fails_ends_the_job_with_the_request_to_blame_and_torchrun_says_why(
    group: int, path: Path, tmp_path: Path
) -> None:
    """What is asked of it next would fail too. One rank of two; they share nothing."""
    output, bad = tmp_path / "out", "lose in block"
    state = run(path, output, [*GOOD, bad], "placement.transformer.rest=disk", f"job.group={group}")
    told = report(output)
    assert told["state"] == "fault" and isinstance(fault := told["fault"], dict)
    assert (fault["prompt"], fault["stage"], fault["component"]) == (bad, "denoise", "transformer")
    assert fault["cause"].startswith("AcceleratorError: CUDA error")
    lost = {id for id, number in state.attempts.items() if number and id not in state.finished}
    assert lost == {fault["request"]}
    _, _, summary = output.with_name("out.log").read_text().rpartition("Root Cause")
    assert f"request {fault['request']} '{bad}': AcceleratorError: CUDA error" in summary
