"""What the page is made of, as numbers: runs, memory, where the seconds went, failures, figures in words."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runner.output.folder import Folder
from runner.report.page.failures import entries
from runner.report.page.memory import memory
from runner.report.page.page import page
from runner.report.page.runs import runs
from runner.report.page.times import times
from runner.report.told import Told
from runner.report.wording import in_bytes, in_seconds


def told(folder: Path, plan: Any = None, **files: list[dict[str, Any]]) -> Told:
    for name, lines in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "run.json").write_text(json.dumps({"run": "b", "state": "done", "plan": plan}))
    return Told.by(Folder(folder))


def sample(run: str, time: float, *host: int, made: int = 0) -> dict[str, Any]:
    return {"run": run, "time": time, "made": made, "failed": 0, "host_bytes": list(host), "device_bytes": []}


def test_a_run_that_was_killed_ended_with_its_last_sample(tmp_path: Path) -> None:
    begun = [
        {"run": run, "time": time, "state": "running", "world_size": 2} for run, time in (("a", 10.0), ("b", 90.0))
    ]
    ended = {"run": "b", "time": 100.0, "state": "stopped", "stopped": "SIGTERM"}
    samples = [sample("a", 11.0, 1), sample("a", 42.0, 1, made=7)]
    first, second = runs(told(tmp_path, runs=[*begun, ended], samples=samples))
    assert (first.state, first.lasted, first.made) == ("dead", 32.0, 7)
    assert (second.state, second.lasted, second.note) == ("stopped", 10.0, "SIGTERM")


def test_memory_is_that_of_the_last_run_and_keeps_its_peaks(tmp_path: Path) -> None:
    samples = [sample("a", 1.0, 5 << 30), *(sample("b", float(n), (n == 1234) << 30, 1 << 20) for n in range(3000))]
    curves = memory(told(tmp_path, samples=samples))
    assert len(curves["times"]) <= 500 and set(curves["host"]) == {"rank 0", "rank 1"} and curves["device"] == {}
    assert max(curves["host"]["rank 0"]) == 1024 and set(curves["host"]["rank 1"]) == {1}
    many = memory(told(tmp_path, samples=[sample("b", 1.0, *(n << 20 for n in range(64)))]))
    assert many["host"] == {"the fullest": [63], "the emptiest": [0]}


def test_what_was_planned_stands_beside_what_was_measured(tmp_path: Path) -> None:
    plan = {"device_bytes": 3 << 30, "host_bytes": 1 << 19, "counts": "weights and activations"}
    assert memory(told(tmp_path, plan))["planned"] == {
        "host": {"name": "as planned, beside Python", "value": 0.5},
        "device": {"name": "as planned", "value": 3072},
    }
    only_weights = memory(told(tmp_path, {"host_bytes": 1 << 20, "counts": "weights"}))["planned"]
    assert only_weights == {"host": {"name": "weights as planned, beside Python", "value": 1}}
    for nothing in (None, {}, "damaged", {"host_bytes": "much"}):
        assert memory(told(tmp_path, nothing))["planned"] == {}


def test_where_the_seconds_went_comes_to_all_of_them() -> None:
    component = {"compute": 6.0, "exposed_wait": 1.0, "exchange": 0.5, "transfer": 4.0, "hidden": 3.0}
    time = {"seconds": 10.0, "components": [component], "glue": 0.5, "meet": 1.0, "write": 0.25, "other": 0.75}
    (rank,) = times({"ranks": [{"time": time}]})
    assert sum(rank["parts"].values()) == pytest.approx(100) and rank["parts"]["exposed_wait"] == pytest.approx(10)
    assert rank["overlap"] == pytest.approx(75)
    assert times({"ranks": [{}]}) == times({}) == []


def test_failures_with_one_cause_are_one_entry(tmp_path: Path) -> None:
    def failed(id: str, message: str, attempts: int = 1) -> dict[str, Any]:
        return {"id": id, "prompt": id, "error": "OutOfMemoryError", "message": message, "attempts": attempts}

    lines = [failed("a", "full"), failed("b", "full"), failed("a", "full", 2), failed("c", "torn")]
    first, second = entries(told(tmp_path, failures=lines))
    assert (first.message, first.num_requests, first.tries) == ("full", 2, 3)
    assert (second.message, second.num_requests, second.tries) == ("torn", 1, 1)


def test_figures_in_words() -> None:
    seconds = {0.042: "42 ms", 1.5: "1.5 s", 59.94: "59.9 s", 185: "3 min 5 s", 7800: "2 h 10 min", 90000: "1 d 1 h"}
    assert {value: in_seconds(value) for value in seconds} == seconds
    sizes = {0: "0 B", 1023: "1023 B", 1536: "1.5 KiB", 5 << 30: "5 GiB", 3 << 40: "3 TiB"}
    assert {value: in_bytes(value) for value in sizes} == sizes


def test_a_certificate_is_on_the_page(tmp_path: Path) -> None:
    job = told(tmp_path)
    files = [
        {"file": "images/a.png", "equal": True, "apart": None},
        {"file": "images/b.png", "equal": False, "apart": 2e-7},
    ]
    requests = [
        {"prompt": "a <fox>", "seed": 1, "how": "stock", "equal": file["equal"], "files": [file]} for file in files
    ]
    verified = {"holds": True, "may_differ": ["execution.compile"], "requests": requests}
    text = " ".join(page(replace(job, run={**job.run, "verified": verified})).split())
    assert "1 of 2 requests have the same bits" in text and "allowed by execution.compile" in text
    assert "others, 2.0e-07 apart" in text and "a &lt;fox&gt;" in text
