"""The one command for whoever has a GPU: it says what passed, what failed and what was not reached, however it ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pytest

from scripts.gpu_check import Devices, Result, Step, found_devices, report, run, steps

ROOT = Path(__file__).resolve().parents[2]
TWO = Devices("cuda", ("cuda:0 A", "cuda:1 A"))


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def nothing(results: Sequence[Result]) -> None:
    return


def test_each_step_has_its_result_and_the_end_of_what_it_printed() -> None:
    tried = [
        Step("good", python("print('a figure')"), 60),
        Step("bad", python("print('why'); raise SystemExit(3)"), 60),
        Step("crashed", python("import os; print('at', flush=True); os.kill(os.getpid(), 11)"), 60),
        Step("odd", python(r"import sys; sys.stdout.buffer.write(b'\xff\xfe half')"), 60),
        Step("slow", python("import time; print('began', flush=True); time.sleep(60)"), 6),
        Step("absent", ["/no/such/program"], 60),
        Step("late", python("print('never')"), 60),
    ]
    told: list[list[str]] = []
    results = run(tried[:-1], 100, lambda results: told.append([result.outcome for result in results]))
    results += run(tried[-1:], 0.5, nothing)
    outcomes = [result.outcome for result in results]
    assert outcomes[:5] == ["ok", "failed (3)", "killed (SIGSEGV)", "ok", "ran out of time"]
    assert outcomes[5].startswith("failed (") and "No such file" in outcomes[5] and outcomes[6] == "not reached"
    assert told[0] == ["ok"] + ["not reached"] * 5 and told[-1] == outcomes[:6], "each is told as soon as it is over"
    text = report(results, [])
    assert "a figure" in text and "why" in text and "began" in text and "half" in text
    assert "nothing below was run on an accelerator" in text and "| late | not reached |" in text


def test_ranks_that_a_step_has_started_end_with_it() -> None:
    """In sessions of their own, as torchrun starts them."""
    code = (
        "import subprocess, sys, time; "
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'], start_new_session=True); "
        "print(p.pid, flush=True); time.sleep(300)"
    )
    (result,) = run([Step("ranks", python(code), 5)], 100, nothing)
    assert result.outcome == "ran out of time" and result.seconds < 30
    wait_for(lambda: not _runs(int(result.output)))


def _runs(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_the_file_is_there_however_it_ends(sent: signal.Signals, tmp_path: Path) -> None:
    """With what was found until then; killed outright, it has what was over before."""
    out = tmp_path / "check.md"
    code = f"""
import sys
from scripts import gpu_check
slow = [gpu_check.Step("first", [sys.executable, "-c", "print('a figure')"], 60)]
sleep = [sys.executable, "-c", "import time; time.sleep(100)"]
slow += [gpu_check.Step(name, sleep, 100) for name in ("second", "third")]
gpu_check.steps = lambda devices: slow
sys.argv = ["gpu_check", "--out", {str(out)!r}]
sys.exit(gpu_check.main())
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(python(code), env=environment, stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: out.exists() and "| first | ok |" in out.read_text())
        ranks = psutil.Process(process.pid).children()
        process.send_signal(sent)
        process.wait(60)
    finally:
        process.kill()
    text = out.read_text()
    assert "a figure" in text and "| third | not reached |" in text
    if sent is signal.SIGKILL:
        assert process.returncode == -sent
        for rank in ranks:
            rank.kill()
        return
    assert process.returncode == 1 and "| second | interrupted |" in text
    assert not any(rank.is_running() for rank in ranks)


def test_looking_for_devices_is_a_step_too() -> None:
    devices, looked = found_devices()
    assert looked.outcome == "ok" and devices.kind
    assert f"device: {devices.names[0]}" if devices.names else "device: none" in report([looked], devices.names)


def test_what_it_runs_is_there() -> None:
    """Paths and options: a check that fails of itself would waste whoever has the GPU."""
    for step in steps(TWO):
        files = [word for word in step.command if word.endswith(".py") or word.startswith("tests")]
        assert all((ROOT / file).exists() for file in files if not file.startswith("/")), step
