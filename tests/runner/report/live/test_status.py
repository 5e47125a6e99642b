"""Pace, the line of the log, and the table: what they say of how a job stands."""

import io
import json
import os
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

import scripts.status
from runner.errors import ExitCode
from runner.output.folder import Folder
from runner.report.live.life import Life, life_of
from runner.report.live.line import Line, a_time, in_a_line
from runner.report.live.pace import Pace
from runner.report.live.samples import Samples
from runner.report.live.status import JobStatus, RankStatus, StatusFile
from runner.report.live.table import table
from runner.report.told import Told

RANKS = [
    RankStatus(0, "n1", "denoise", "transformer", "a", "a fox", 0.2, (("a", 12, 30),), 3, 0, 3 << 30, 0, 0.0),
    RankStatus(1, "n2", "denoise", "transformer", "b", "a\npanda", 0.0, (("b", 9, 30),), 2, 1, 2 << 30, 0, 0.4),
]
STATUS = JobStatus("r", 1000.0, 900.0, 100, 34, 1, 5, 1, 2.3 / 60, 1680.0, ranks=RANKS)


def test_the_pace_is_that_of_the_last_minutes() -> None:
    pace = Pace()
    for second in range(2000):
        pace.see(float(second), second * (0.01 if second < 1000 else 0.05) - (40 if second >= 1000 else 0))
    assert pace.rate == pytest.approx(0.05)


def test_there_is_no_pace_before_anything_got_on() -> None:
    pace = Pace()
    for second in range(5):
        pace.see(float(second), 0.0)
        assert pace.rate is None


def test_what_a_failed_request_had_done_is_not_counted_as_lost_time() -> None:
    pace = Pace()
    for second, done in enumerate((0.0, 0.5, 1.0, 1.5, 0.6, 1.1, 1.6)):  # at 4, one that was almost done fails
        pace.see(float(second), done)
    assert 0.3 < (pace.rate or 0) < 0.5


def test_a_line_of_the_log() -> None:
    assert in_a_line(STATUS) == "34 of 100 made, 1 failed, 2.3 a minute, 28 min left | denoise 12/30, 9/30"
    assert in_a_line(replace(STATUS, rate=None, stopping="SIGTERM")).endswith("| stopping: SIGTERM")
    many = [replace(RANKS[0], rank=n, steps=((str(n), n, 30),), device_bytes=n << 30) for n in range(1, 9)]
    assert in_a_line(replace(STATUS, ranks=many)).endswith("| denoise 1/30 to 8/30 | 8 GiB of the device")
    assert in_a_line(STATUS, bar=True).startswith(" 35% ▕█████▊ ")


@pytest.mark.parametrize(
    ("rate", "told"), [(3.0, "3 a second"), (0.05, "3 a minute"), (1 / 600, "6 an hour"), (1e-5, "0.036 an hour")]
)
def test_a_rate_has_the_unit_in_which_it_is_told_best(rate: float, told: str) -> None:
    assert a_time(rate) == told


def test_a_log_has_a_line_now_and_then_and_no_line_is_written_over(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    line = Line()
    for second in range(24 * 3600):
        line(replace(STATUS, began=0.0, time=float(second)))
    lines = log.getvalue().splitlines()
    assert 60 < len(lines) < 140 and set(lines) == {in_a_line(STATUS)}
    assert "\r" not in log.getvalue() and "\x1b" not in log.getvalue()


def test_a_terminal_has_one_line_that_fits_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "40")
    line = Line()
    line(STATUS)
    line(STATUS)
    line.clear()
    first, second, last = terminal.getvalue().split("\r\x1b[K")[1:]
    assert first == second and len(first) == 39 and "34 of 100" in first and last == ""


def test_samples_get_rarer_and_lose_no_peak(tmp_path: Path) -> None:
    samples = Samples(Folder(tmp_path))
    for second in range(36_000):
        host = 9 << 30 if second == 20_001 else 1 << 30
        samples(replace(STATUS, began=0.0, time=float(second), ranks=[replace(RANKS[0], host_bytes=host)]))
    lines = [json.loads(line) for line in Folder(tmp_path).samples.read_text().splitlines()]
    assert 1000 < len(lines) < 1500 and max(line["host_bytes"][0] for line in lines) == 9 << 30
    assert lines[1]["time"] - lines[0]["time"] == 1.0


def told(folder: Path, status: JobStatus | None, **run: object) -> Told:
    (folder / "run.json").write_text(json.dumps({"run": "r", "host": "h", "pid": 1, "since": "then", **run}))
    if status is not None:
        StatusFile(Folder(folder))(status)
    return Told.by(Folder(folder))


def test_a_status_is_read_as_it_was_written(tmp_path: Path) -> None:
    StatusFile(Folder(tmp_path))(STATUS)
    read = JobStatus.read(Folder(tmp_path))
    assert read is not None and read.ranks[1].prompt == "a\npanda" and list(read.ranks[0].steps[0]) == ["a", 12, 30]
    assert replace(read, ranks=()) == replace(STATUS, ranks=())
    for damaged in ("", "{", "[1]", '{"run": "r"}', '{"ranks": 3, "run": "r", "time": 1, "began": 1}'):
        Folder(tmp_path).status.write_text(damaged)
        assert JobStatus.read(Folder(tmp_path)) is None


def test_who_writes_is_running_whose_process_is_gone_is_dead_and_else_nobody_knows(tmp_path: Path) -> None:
    here, fresh, old = os.uname().nodename, replace(STATUS, time=time.time()), STATUS
    folder = Folder(tmp_path)
    gone = {"run": "r", "host": here, "pid": 2**22 + 7}
    assert life_of(gone, fresh, folder) is Life.running
    assert life_of(gone, old, folder) is Life.dead
    assert life_of({**gone, "pid": os.getpid()}, old, folder) is Life.silent
    assert life_of({**gone, "host": "elsewhere"}, old, folder) is Life.silent
    assert life_of(gone, replace(fresh, run="an earlier one"), folder) is Life.dead


def test_the_table_of_a_running_job(tmp_path: Path) -> None:
    text = table(told(tmp_path, replace(STATUS, time=time.time()), state="running"))
    assert f"{tmp_path}: running" in text and "0 of 100 made, 1 failed, 2.3 a minute, 28 min left" in text
    (row,) = [line for line in text.splitlines() if line.startswith("1 ")]
    assert row.split() == ["1", "n2", "denoise/transformer", "9/30", "2", "2", "GiB", "0", "s", "a", "panda"]


def test_the_table_of_a_job_that_is_not(tmp_path: Path) -> None:
    assert "left no word" in table(told(tmp_path, STATUS, state="running", host=os.uname().nodename, pid=2**22 + 7))
    assert "no sign of life since 1970" in table(told(tmp_path, STATUS, state="running", host="elsewhere"))
    fault = {"rank": 3, "host": "n4", "stage": "decode", "component": "vae", "cause": "out of memory"}
    assert "fault: rank 3 on n4, decode/vae: out of memory" in table(told(tmp_path, STATUS, state="fault", fault=fault))
    assert "stopped: SIGTERM; the same" in table(told(tmp_path, STATUS, state="stopped", stopped="SIGTERM"))
    assert f"{tmp_path}: done" in table(told(tmp_path, None, state="done"))


def test_who_watches_takes_no_job_for_silent_whose_clock_is_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It writes all the time, an hour ago."""
    monkeypatch.setattr(scripts.status, "_AGAIN", 0.5)
    monkeypatch.setattr(scripts.status, "_EVERY", 0.5)
    told(tmp_path, STATUS, state="running", host="elsewhere")
    over = threading.Event()

    def write() -> None:
        for number in range(40):
            StatusFile(Folder(tmp_path))(replace(STATUS, time=time.time() - 3600 + number / 100))
            over.wait(0.05)
        (tmp_path / "new").write_text(json.dumps({"run": "r", "state": "done"}))
        os.replace(tmp_path / "new", tmp_path / "run.json")

    job = threading.Thread(target=write)
    job.start()
    assert scripts.status.main([str(tmp_path), "--watch"]) == ExitCode.DONE
    job.join()
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"{tmp_path}: ")]
    assert [line.rpartition(" ")[2] for line in shown][-1] == "done" and "silent" not in " ".join(shown)
    assert len(shown) >= 3
