"""The same command again makes what is missing, and only that; failures are recorded, and tried a few times."""

import errno
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import runner.media.save
import runner.run
from runner.config import load_config
from runner.errors import ExitCode, UserError
from runner.job.requests import read_job, requests_of, settle
from runner.media.sheet import contact_sheet
from runner.output.lines import ManifestLine
from runner.output.manifest import Manifest, State
from runner.pipeline.open import open_pipeline
from runner.pipeline.pipeline import Pipeline
from runner.request import Request
from runner.run import run
from runner.world import World

ROOT = Path(__file__).resolve().parents[3]
PROMPTS = "[a rocket, a panda, a castle]"


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., int]:
    """Run a job in this process; its exit code."""

    def make(*overrides: str, prompts: str = PROMPTS) -> int:
        small = ["job.images_per_prompt=1", "job.call.num_inference_steps=1", f"model.path={ROOT}/models/emoji-dit"]
        arguments = [*small, f"job.prompt={prompts}", f"job.output={tmp_path / 'out'}", *overrides]
        config = load_config(ROOT / "configs" / "generate.yaml", arguments)
        return run(config, World(0, 1, torch.device("cpu")))

    return make


def lines(folder: Path, name: str = "manifest.jsonl") -> list[dict[str, Any]]:
    file = folder / name
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


def pictures(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of writing, by name."""
    return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in (folder / "images").iterdir()}


def test_ten_thousand_prompts_are_planned_and_settled_in_a_second(tmp_path: Path) -> None:
    """Loose: it fails when each is compared with each."""
    file = tmp_path / "prompts.txt"
    file.write_text("".join(f"a rocket number {number}\n" for number in range(10_000)))
    config = load_config(None, [f"model.path={ROOT}/models/emoji-dit", f"job.prompts={file}"])
    pipeline = open_pipeline(config, World(0, 1, torch.device("cpu")))
    start = time.perf_counter()
    requests = requests_of(read_job(config.job), config.job, pipeline, {})
    half = {
        request.id: ManifestLine(id=request.id, file=f"images/{request.stem}.png", bytes=1, mtime_ns=1, file_sha256="")
        for request in requests[::2]
    }
    settled, left = settle(requests, State(finished=half), max_attempts=3)
    assert len(settled) == len(left) == 5_000
    print(f"\n{time.perf_counter() - start:.2f} s")
    assert time.perf_counter() - start < 5


def test_a_misspelt_argument_is_not_called_another_recipe(make: Callable[..., int]) -> None:
    assert make() == ExitCode.DONE
    with pytest.raises(UserError, match="nearest is 'guidance_scale'"):
        make("job.call.guidence_scale=2")


def test_a_rerun_makes_what_is_missing_and_only_that(make: Callable[..., int], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert make() == ExitCode.DONE
    before = pictures(out)
    assert make() == ExitCode.DONE and pictures(out) == before and report(out)["finished_before"] == 3
    names = sorted(before)
    (out / "images" / names[0]).unlink()
    os.truncate(out / "images" / names[1], 100)
    (out / "images" / f".{names[1]}.0f.tmp.png").touch()
    with (out / "manifest.jsonl").open("a") as stream:
        stream.write('{"id": "torn')
    assert make() == ExitCode.DONE
    after = pictures(out)
    assert {name: content for name, (content, _) in after.items()} == {name: b for name, (b, _) in before.items()}
    assert [name for name in names if after[name][1] == before[name][1]] == [names[2]], "two were made again"
    assert sorted(Path(line["file"]).name for line in lines(out)) == names
    assert report(out)["finished"] == 3 and report(out)["finished_before"] == 1 and report(out)["state"] == "done"


def test_a_longer_list_goes_on_in_the_same_folder(make: Callable[..., int], tmp_path: Path) -> None:
    make(prompts="[a rocket, a rocket, a panda]")
    assert [Path(line["file"]).name for line in lines(tmp_path / "out")] == [
        "0000-a-rocket-0.png",
        "0002-a-panda-0.png",
    ]
    before = pictures(tmp_path / "out")
    assert make(prompts="[a ghost, a rocket, a panda]") == ExitCode.DONE
    after = pictures(tmp_path / "out")
    assert before.items() <= after.items() and len(after) == 3
    assert make("job.images_per_prompt=2", prompts="[a ghost]") == ExitCode.DONE
    assert len(lines(tmp_path / "out")) == 4


def test_another_recipe_is_refused_or_goes_elsewhere(make: Callable[..., int], tmp_path: Path) -> None:
    make()
    before = pictures(tmp_path / "out")
    with pytest.raises(UserError, match=r"job.call.guidance_scale: 3.0 -> 2"):
        make("job.call.guidance_scale=2")
    assert pictures(tmp_path / "out") == before and report(tmp_path / "out")["state"] == "done"
    assert make("job.call.guidance_scale=2", "job.on_change=new_folder") == ExitCode.DONE
    assert len(pictures(tmp_path / "out-2")) == 3


def test_a_failure_is_recorded_and_given_up_after_some_runs(make: Callable[..., int], tmp_path: Path) -> None:
    rows = [
        {"prompt": "a rocket"},
        {"prompt": "a panda", "height": 63},
        {"prompt": "a castle", "guidance_scale": 1e38},  # more than fp32 can add up
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = (f"job.prompts={tmp_path / 'p.jsonl'}", "job.max_attempts=2")
    assert make(*job) == ExitCode.FAILED
    (bad_size, not_finite) = lines(tmp_path / "out", "failures.jsonl")
    assert (bad_size["stage"], bad_size["component"], bad_size["attempts"]) == ("start", "PixArtSigmaPipeline", 1)
    assert "63" in bad_size["message"] and "check_inputs" in bad_size["traceback"]
    assert (not_finite["stage"], not_finite["component"], not_finite["error"]) == ("decode", "vae", "NotFinite")
    assert len(lines(tmp_path / "out")) == 1
    assert make(*job) == ExitCode.FAILED
    assert [failure["attempts"] for failure in lines(tmp_path / "out", "failures.jsonl")] == [1, 1, 2, 2]
    assert make(*job) == ExitCode.FAILED
    assert len(lines(tmp_path / "out", "failures.jsonl")) == 4, "not tried a third time"
    assert len(report(tmp_path / "out")["failures"]) == 2 and report(tmp_path / "out")["state"] == "failed"


def test_a_prompt_is_recorded_as_it_was_typed(make: Callable[..., int], tmp_path: Path) -> None:
    text = "12:30, costs ${5 #1: \\${x}"
    assert make(prompts=text) == ExitCode.DONE
    (line,) = lines(tmp_path / "out")
    assert line["prompt"] == report(tmp_path / "out")["config"]["job"]["prompt"] == text
    with Image.open(tmp_path / "out" / line["file"]) as picture:
        assert picture.info["prompt"] == text


def test_what_ended_the_job_is_tried_last_and_then_no_more(make: Callable[..., int], tmp_path: Path) -> None:
    make(prompts="[a rocket]")
    (id,) = [line["id"] for line in lines(tmp_path / "out")]
    (tmp_path / "out" / "manifest.jsonl").unlink()
    tried = json.dumps({"started": [id]}) + "\n"
    (tmp_path / "out" / "attempts.jsonl").write_text(tried * 2)
    assert make() == ExitCode.DONE
    assert [line["prompt"] for line in lines(tmp_path / "out")] == ["a panda", "a castle", "a rocket"]
    (tmp_path / "out" / "manifest.jsonl").unlink()
    (tmp_path / "out" / "attempts.jsonl").write_text(tried * 3)
    assert make() == ExitCode.FAILED
    (failure,) = report(tmp_path / "out")["failures"]
    assert "each of the 3 times" in failure["reason"] and failure["prompt"] == "a rocket"


def test_a_full_disk_ends_the_job_and_is_not_held_against_the_request(
    make: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "x.png")

    with monkeypatch.context() as patch:
        patch.setattr(runner.media.save, "save_picture", full)
        with pytest.raises(SystemExit) as ended:
            make()
    assert ended.value.code == ExitCode.FAULT
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("fault: rank 0 on ") and ", write, request" in last and "No space left" in last
    assert report(tmp_path / "out")["state"] == "fault" and report(tmp_path / "out")["fault"]["prompt"] == "a rocket"
    assert make("job.max_attempts=1") == ExitCode.DONE


def test_a_request_too_large_for_the_device_fails_and_the_others_are_made(
    make: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = Pipeline.__call__

    def full(self: Pipeline, request: Request, resume: Any) -> Any:
        if request.prompt == "a panda":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 90.00 GiB")
        return call(self, request, resume)

    monkeypatch.setattr(Pipeline, "__call__", full)
    assert make() == ExitCode.FAILED
    assert [line["prompt"] for line in lines(tmp_path / "out")] == ["a rocket", "a castle"]
    assert [line["error"] for line in lines(tmp_path / "out", "failures.jsonl")] == ["OutOfMemoryError"]


def test_a_stop_file_is_heeded_once(make: Callable[..., int], tmp_path: Path) -> None:
    stop, state = tmp_path / "stop-now", tmp_path / "state"
    stop.touch()
    settings = (f"job.stop_file={stop}", f"job.state_file={state}")
    assert make(*settings) == ExitCode.STOPPED
    assert not stop.exists() and state.read_text() == "stopped\n"
    assert report(tmp_path / "out")["left"] > 0 and "stop-now" in report(tmp_path / "out")["stopped"]
    assert make(*settings) == ExitCode.DONE and state.read_text() == "done\n"


def test_a_mistake_leaves_the_last_report_and_no_recipe(make: Callable[..., int], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nearest is 'guidance_scale'"):
        make("job.call.guidance_scal=2")
    assert not (tmp_path / "out" / "recipe.json").exists(), "the corrected command is no change of recipe"
    make()
    before = report(tmp_path / "out")
    with pytest.raises(UserError):
        make(prompts="[7]")
    assert report(tmp_path / "out") == before


def _removed(out: Path) -> None:
    shutil.rmtree(out / "images")


def _damaged(out: Path) -> None:
    for file in (out / "images").iterdir():
        file.write_bytes(b"no picture")


def _folder_in_the_sheets_place(out: Path) -> None:
    (out / "contact-sheet.png").unlink(missing_ok=True)
    (out / "contact-sheet.png" / "inside").mkdir(parents=True, exist_ok=True)


@pytest.mark.parametrize("meddle", [_removed, _damaged, _folder_in_the_sheets_place])
def test_after_the_last_picture_nothing_fails_the_job(
    meddle: Callable[[Path], None], make: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A consumer takes, damages or replaces files while the report is being written."""
    out = tmp_path / "out"

    def meddled(*arguments: Any) -> None:
        meddle(out)
        contact_sheet(*arguments)

    monkeypatch.setattr(runner.run, "contact_sheet", meddled)
    assert make() == ExitCode.DONE and report(out)["state"] == "done"


def test_a_picture_too_large_for_the_contact_sheet_is_left_out(tmp_path: Path) -> None:
    """Pillow refuses to open what has more than twice 89 million pixels."""
    large, small = tmp_path / "large.png", tmp_path / "small.png"
    Image.new("1", (20_000, 10_000)).save(large)
    Image.new("RGB", (8, 8), "red").save(small)
    contact_sheet(tmp_path / "sheet.png", [([large], "large"), ([small], "small")])
    pixels = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB"))
    assert (pixels == (255, 0, 0)).all(axis=2).any()


def test_a_prompt_with_an_interpolations_characters_is_reported_as_it_is(
    make: Callable[..., int], tmp_path: Path
) -> None:
    (tmp_path / "p.txt").write_text("a ${job.seed} rocket\n")
    call = "job.call.negative_prompt=${x}"
    assert make(f"job.prompts={tmp_path / 'p.txt'}", call) == ExitCode.DONE
    assert [line["prompt"] for line in lines(tmp_path / "out")] == ["a ${job.seed} rocket"]
    assert report(tmp_path / "out")["config"]["job"]["call"]["negative_prompt"] == "${x}"


def test_a_lock_that_is_removed_ends_the_job_before_it_writes_on(
    make: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = Manifest.record

    def record(self: Manifest, *arguments: Any) -> None:
        taken(self, *arguments)
        self.folder.lock.unlink(missing_ok=True)

    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "record", record)
        with pytest.raises(SystemExit) as ended:
            make()
    assert ended.value.code == ExitCode.FAULT and len(lines(tmp_path / "out")) == 1
    assert "job.lock was removed or replaced" in capsys.readouterr().err.strip().splitlines()[-1]
    assert make("job.max_attempts=1") == ExitCode.DONE and len(lines(tmp_path / "out")) == 3


def test_a_folder_named_stop_asks_for_nothing(make: Callable[..., int], tmp_path: Path) -> None:
    (tmp_path / "out" / "stop").mkdir(parents=True)
    assert make() == ExitCode.DONE and (tmp_path / "out" / "stop").is_dir()
