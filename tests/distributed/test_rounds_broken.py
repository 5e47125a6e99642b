"""Real processes that share out the calls of each request, and a call of one rank that goes wrong: it costs no other
request anything.

Of its call there, since the first step and the first request told what calls there are, the other rank has no part.
"""

import functools
import json
from pathlib import Path

import numpy as np
import pytest

from tests import tiny
from tests.distributed.placed import stock_of
from tests.distributed.test_groups_broken import report, run, tries

pytestmark = pytest.mark.slow
GOOD = ["a red fox", "a blue whale", "an old clock"]
GUIDED = {"true_cfg_scale": 3.0, "negative_prompt": "blurry"}
TEAM = ["mesh.guidance=2", *(f"job.call.{name}={value}" for name, value in GUIDED.items())]


@pytest.fixture
def path(tiny_root: Path) -> Path:
    return tiny.build("flux", tiny_root)


@functools.cache
def stock_picture(path: Path, prompt: str, seed: int) -> np.ndarray:
    family = tiny.FAMILIES["flux"]
    guided = tiny.TinyPipeline("flux", family.build, {**family.call, **GUIDED})
    return np.asarray(tiny.call_stock(stock_of(path), guided, prompt, seed)[0])


def expect_good(path: Path, output: Path) -> None:
    made = [json.loads(line) for line in (output / "manifest.jsonl").read_text().splitlines()]
    assert sorted(line["prompt"] for line in made) == sorted(GOOD) and {line["rank"] for line in made} == {0}
    for line in made:
        assert np.array_equal(np.load(output / line["file"]), stock_picture(path, line["prompt"], line["seed"]))


@pytest.mark.parametrize("group", [1, 4])
def test_a_call_that_fails_on_one_rank_is_its_requests_and_the_job_goes_on(
    group: int, path: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    state = run(path, output, [GOOD[0], "raise in round", *GOOD[1:]], *TEAM, f"job.group={group}")
    (failure,) = state.failures.values()
    assert (failure.error, failure.message, failure.component) == ("ValueError", "as told", "transformer")
    assert tries(output, state) == {"raise in round": 1}
    told = report(output)
    assert told["state"] == "failed" and told["rounds"]["transformer"]["calls_shared_out"]  # type: ignore[index]
    expect_good(path, output)


@pytest.mark.parametrize(
    ("how", "placement"),
    [("kill", "share=replicate"), ("raise", "share=shard")],
    ids=["a rank is killed", "a rank leaves the others in a gather"],
)
def test_what_ends_the_job_is_named_and_the_next_run_makes_the_rest(
    how: str, placement: str, path: Path, tmp_path: Path
) -> None:
    output, bad = tmp_path / "out", f"{how} in round"
    words = [*TEAM, f"placement.transformer.{placement}", "job.group=1", "job.max_attempts=1"]
    state = run(path, output, [GOOD[0], bad, *GOOD[1:]], *words)
    told = report(output)
    assert told["state"] == "fault" and bad in str(told["fault"])
    assert how == "kill" or "transformer" in str(told["fault"]), "of a killed rank, its last heartbeat"
    assert [str(line.prompt) for line in state.finished.values()] == GOOD[:1]
    state = run(path, output, [GOOD[0], bad, *GOOD[1:]], *words)
    assert report(output)["state"] == "failed"
    assert sum(id not in state.finished for id in state.attempts) == 1
    expect_good(path, output)
