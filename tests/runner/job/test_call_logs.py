"""A job with call logs: what is kept while a request is made, and what is gone when it is."""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import runner.output.call_log
from runner.calls.finite import NotFinite
from runner.config import load_config
from runner.errors import ExitCode, UserError
from runner.output.call_log import count_records
from runner.resume.replay import Replay
from runner.run import run
from runner.world import World

ROOT = Path(__file__).resolve().parents[3]
STEPS = 4


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., int]:
    """Run a job of one picture in this process; its exit code."""

    def make(*overrides: str) -> int:
        small = ["job.images_per_prompt=1", f"job.call.num_inference_steps={STEPS}", "job.prompt=a rocket"]
        arguments = [*small, f"model.path={ROOT}/models/emoji-dit", f"job.output={tmp_path / 'out'}", *overrides]
        return run(load_config(ROOT / "configs" / "generate.yaml", arguments), World(0, 1, torch.device("cpu")))

    return make


@pytest.fixture
def decoder_is_lost(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException | None], None]:
    """From now on, each request's decoding raises; None: no more."""
    import runner.job.making

    save = runner.job.making.save

    def lose(error: BaseException | None) -> None:
        def lost(*arguments: Any) -> Any:
            if error is not None:
                raise error
            return save(*arguments)

        monkeypatch.setattr(runner.job.making, "save", lost)

    return lose


def report(output: Path) -> dict[str, Any]:
    return json.loads((output / "run.json").read_text())


def test_a_job_that_could_not_write_its_picture_goes_on_without_a_call(
    make: Callable[..., int], decoder_is_lost: Callable[..., None], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    decoder_is_lost(OSError(errno.EIO, "the disk is lost"))  # which ends the job, and counts against no request
    with pytest.raises(SystemExit):
        make("job.resume_inside=true")
    (log,) = (output / "calls").iterdir()
    assert count_records(log) == STEPS and report(output)["state"] == "fault"
    (output / "calls" / "0123456789abcdef.log").write_bytes(b"of a request that the job has no more")
    decoder_is_lost(None)
    assert make("job.resume_inside=auto") == ExitCode.DONE
    log_figures = report(output)["ranks"][0]["call_log"]
    assert (log_figures["calls_replayed"], log_figures["calls_logged"]) == (STEPS, 0)
    assert report(output)["ranks"][0]["calls_per_stage"].get("denoise", 0) == 0
    assert not (output / "calls").exists()


@pytest.mark.parametrize(
    ("error", "replayed"),
    [
        pytest.param(NotFinite("latents: NaN"), 0, id="wrong calls"),
        pytest.param(ValueError("of the decoder's own"), STEPS, id="right calls"),
    ],
)
def test_after_a_failure_the_calls_are_made_again_only_where_they_gave_no_numbers(
    make: Callable[..., int],
    decoder_is_lost: Callable[..., None],
    tmp_path: Path,
    error: Exception,
    replayed: int,
) -> None:
    decoder_is_lost(error)
    assert make("job.resume_inside=true") == ExitCode.FAILED
    assert (tmp_path / "out" / "calls").exists() == (replayed > 0)
    decoder_is_lost(None)
    assert make("job.resume_inside=true") == ExitCode.DONE
    assert report(tmp_path / "out")["ranks"][0]["call_log"]["calls_replayed"] == replayed
    assert not (tmp_path / "out" / "calls").exists()


def test_what_decides_bits_differs_and_the_log_is_put_aside(
    make: Callable[..., int],
    decoder_is_lost: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    decoder_is_lost(OSError(errno.EIO, "the disk is lost"))
    with pytest.raises(SystemExit):
        make("job.resume_inside=true")
    decoder_is_lost(None)
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    assert make("job.resume_inside=true") == ExitCode.DONE
    told = capfd.readouterr().err
    assert f"{threads} thread(s) -> cpu" in told and "put aside" in told
    assert report(tmp_path / "out")["ranks"][0]["call_log"]["calls_replayed"] == 0
    assert not (tmp_path / "out" / "calls").exists(), "what was put aside goes with the picture"


def test_a_full_disk_stops_the_log_and_not_the_job(
    make: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(runner.output.call_log, "RESERVE", 1 << 60)
    assert make("job.resume_inside=true") == ExitCode.DONE
    told = capfd.readouterr().err
    assert told.count("calls are not logged any more") == 1 and "may be needed" in told
    assert not (tmp_path / "out" / "calls").exists()


def test_off_lays_nothing_over_the_calls(
    make: Callable[..., int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Replay, "__init__", None)
    assert make("job.resume_inside=false") == ExitCode.DONE
    assert "call_log" not in report(tmp_path / "out")["ranks"][0]


def test_the_key_is_true_false_or_auto() -> None:
    assert [load_config(None, [f"job.resume_inside={v}"]).job.resume_inside for v in ("true", "false", "auto")] == [
        True, False, "auto",
    ]  # fmt: skip
    with pytest.raises(UserError, match="true, false or auto"):
        load_config(None, ["job.resume_inside=perhaps"])
