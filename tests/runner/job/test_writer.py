"""Outputs are written while the next request is made, one at a time; what is not whole on the disk is not recorded."""

import errno
import json
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

import runner.job.making
from runner.config import load_config
from runner.errors import ExitCode, JobFault
from runner.health.fault import Status
from runner.job.results import Failed
from runner.job.writer import Writer
from runner.output.folder import Folder
from runner.output.lines import Failure
from runner.pipeline.pipeline import Pipeline
from runner.progress import Progress
from runner.report.read_trace import read_intervals
from runner.request import Request
from runner.run import run
from runner.trace.interval import Lane
from runner.world import World

ROOT = Path(__file__).resolve().parents[3]
PROMPTS = ["a rocket", "a panda", "a castle"]


class Job:
    """A job of three pictures in this process, whose writing and making are timed; `before_writing` is called by the
    thread that writes."""

    def __init__(self, output: Path, patch: pytest.MonkeyPatch) -> None:
        self.output = output
        self.made: dict[str, tuple[float, float]] = {}  # by prompt, when; the second is infinite while it is made
        self.written: dict[str, tuple[float, float]] = {}
        self.before_writing: Callable[[str], None] = lambda prompt: None
        call, save = Pipeline.__call__, runner.job.making.save

        def made(pipeline: Pipeline, request: Request, *arguments: Any) -> Any:
            began = time.perf_counter()
            self.made[str(request.prompt)] = (began, float("inf"))
            output = call(pipeline, request, *arguments)
            self.made[str(request.prompt)] = (began, time.perf_counter())
            return output

        def saved(outputs: Any, request: Request, *arguments: Any) -> Any:
            began = time.perf_counter()
            self.before_writing(str(request.prompt))
            facts = save(outputs, request, *arguments)
            self.written[str(request.prompt)] = (began, time.perf_counter())
            return facts

        patch.setattr(Pipeline, "__call__", made)
        patch.setattr(runner.job.making, "save", saved)

    def run(self, *overrides: str) -> int:
        small = ["job.images_per_prompt=1", "job.call.num_inference_steps=3", f"model.path={ROOT}/models/emoji-dit"]
        arguments = [*small, f"job.prompt=[{', '.join(PROMPTS)}]", f"job.output={self.output}", *overrides]
        config = load_config(ROOT / "configs" / "generate.yaml", arguments)
        return run(config, World(0, 1, torch.device("cpu")))

    def lines(self, name: str = "manifest.jsonl") -> list[dict[str, Any]]:
        file = self.output / name
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def report(self) -> dict[str, Any]:
        return json.loads((self.output / "run.json").read_text())


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    return Job(tmp_path / "out", monkeypatch)


@pytest.mark.parametrize("group", [1, 3])
def test_a_picture_is_written_while_the_next_is_made(group: int, job: Job) -> None:
    job.before_writing = lambda _: time.sleep(0.2)  # as long as a clip's codec takes
    assert job.run(f"job.group={group}") == ExitCode.DONE
    assert [line["prompt"] for line in job.lines()] == PROMPTS
    written = [job.written[prompt] for prompt in PROMPTS]
    assert all(ended <= began for (_, ended), (began, _) in pairwise(written)), "one at a time"
    if group == 1:
        for (began, ended), following in zip(written[:-1], PROMPTS[1:], strict=True):
            began_next, ended_next = job.made[following]
            assert began < ended_next and began_next < ended, "they lie side by side"


def test_the_trace_shows_writing_beside_denoising(job: Job) -> None:
    job.before_writing = lambda _: time.sleep(0.3)
    assert job.run("job.profile=true") == ExitCode.DONE
    _, intervals = read_intervals(Folder(job.output).intervals(0))
    written = {one.request: one for one in intervals if one.lane is Lane.write}
    denoised = [one for one in intervals if one.name == "component" and one.stage == "denoise"]
    ids = [line["id"] for line in job.lines()]
    assert list(written) == ids and all(one.num_bytes > 0 and one.seconds >= 0.3 for one in written.values())
    for id, following in pairwise(ids):
        steps = [one for one in denoised if one.request == following]
        assert any(one.begin < written[id].end and written[id].begin < one.end for one in steps), "side by side"
    (time_of_rank,) = [rank["time"] for rank in job.report()["ranks"]]
    assert time_of_rank["written_beside"] >= 0.9


def test_no_more_than_one_output_waits_to_be_written(job: Job) -> None:
    seen: list[set[str]] = []

    def slow(prompt: str) -> None:
        if prompt == PROMPTS[0]:
            deadline = time.monotonic() + 60
            while job.made.get(PROMPTS[1], (0.0, float("inf")))[1] == float("inf") and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(0.3)
            seen.append(set(job.made))

    job.before_writing = slow
    assert job.run() == ExitCode.DONE
    assert seen == [set(PROMPTS[:2])], "the third is not begun"
    assert len(job.lines()) == 3


def test_what_cannot_be_written_fails_its_request_alone(job: Job) -> None:
    def refuse(prompt: str) -> None:
        if prompt == "a panda":
            raise ValueError("the codec takes no such size")

    job.before_writing = refuse
    assert job.run() == ExitCode.FAILED
    assert [line["prompt"] for line in job.lines()] == ["a rocket", "a castle"]
    (failure,) = job.lines("failures.jsonl")
    assert (failure["prompt"], failure["stage"], failure["error"]) == ("a panda", "write", "ValueError")
    assert "the codec takes no such size" in failure["message"] and "refuse" in failure["traceback"]


def test_a_full_disk_ends_the_job_inside_the_next_request(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    def full(prompt: str) -> None:
        if prompt == "a rocket":
            raise OSError(errno.ENOSPC, "No space left on device", "x.png")

    job.before_writing, steps = full, "job.call.num_inference_steps=20"
    with pytest.raises(SystemExit) as ended:
        job.run(steps)
    assert ended.value.code == ExitCode.FAULT
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("fault: rank 0 on ") and ", write, request " in last and "'a rocket'" in last
    assert "No space left" in last and job.report()["fault"]["prompt"] == "a rocket"
    assert job.made["a panda"][1] == float("inf"), "it was not made to its end"
    assert "a castle" not in job.made and not job.lines() and not job.lines("failures.jsonl")
    job.before_writing = lambda _: None
    assert job.run(steps, "job.max_attempts=1") == ExitCode.DONE, "no try counted"


def test_what_goes_wrong_in_recording_is_no_other_requests_failure(
    job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any) -> None:
        raise TypeError("a bug of ours")

    with monkeypatch.context() as patch:
        patch.setattr(runner.job.making, "_record", broken)
        with pytest.raises(SystemExit) as ended:
            job.run()
    assert ended.value.code == ExitCode.FAULT
    assert "JobFault: TypeError: a bug of ours" in capsys.readouterr().err.strip().splitlines()[-1]
    assert not job.lines("failures.jsonl")


def test_a_stop_leaves_nothing_unwritten(job: Job) -> None:
    def stop(prompt: str) -> None:
        if prompt == "a rocket":
            (job.output / "stop").touch()
            time.sleep(1.5)  # the watch looks twice a second

    job.before_writing = stop
    assert job.run() == ExitCode.STOPPED
    made = [line["prompt"] for line in job.lines()]
    assert made == [prompt for prompt in PROMPTS if prompt in job.made], "all that was made is written and recorded"
    assert "a castle" not in made
    assert job.run() == ExitCode.DONE and len(job.lines()) == 3


def test_another_fault_does_not_cost_what_is_being_written(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    job.before_writing = lambda _: time.sleep(0.3)
    call = Pipeline.__call__

    def lost(pipeline: Pipeline, request: Request, *arguments: Any) -> Any:
        if request.prompt == "a panda":
            raise JobFault("the device is lost")
        return call(pipeline, request, *arguments)

    monkeypatch.setattr(Pipeline, "__call__", lost)
    with pytest.raises(SystemExit):
        job.run()
    assert [line["prompt"] for line in job.lines()] == ["a rocket"]


def test_who_waits_for_a_disk_that_hangs_stands_still_and_says_where() -> None:
    """So that the watch can end the job (job.timeout_seconds)."""
    progress, may_end = Progress(), threading.Event()
    writer, first = Writer(progress), Request("a rocket", id="first")

    def hang() -> Failed:
        may_end.wait(60)
        return Failed(first, Failure(id="first", error="", message=""))

    progress.begin([first])
    writer.write(first, hang)
    progress.making(Request("a panda", id="second"))
    waiting = threading.Thread(target=writer.wait)
    waiting.start()
    waiting.join(0.2)
    status = Status.of(progress)
    assert (status.stage, status.request) == ("write", "first") and progress.begun and not writer.over()
    position = progress.position()
    time.sleep(0.1)
    assert progress.position() == position
    may_end.set()
    waiting.join()
    assert [result.request.id for result in writer.over()] == ["first"]
