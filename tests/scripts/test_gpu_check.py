"""The one command for whoever has a GPU: it says what passed, what failed and what it did not get to."""

import sys

from scripts.gpu_check import Step, report, run, steps


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_each_step_has_its_result_and_the_end_of_what_it_printed() -> None:
    tried = [
        Step("good", python("print('a figure')"), 60),
        Step("bad", python("print('why'); raise SystemExit(3)"), 60),
        Step("slow", python("import time; print('began', flush=True); time.sleep(60)"), 6),
        Step("late", python("print('never')"), 60),
    ]
    results = run(tried[:3], 100) + run(tried[3:], 1)
    assert [result.outcome for result in results] == ["ok", "failed (3)", "ran out of time", "not reached"]
    text = report(results, [])
    assert "a figure" in text and "why" in text and "began" in text
    assert "nothing below was run on an accelerator" in text and "| late | not reached |" in text


def test_what_it_runs_is_there() -> None:
    """Paths and options: a check that fails of itself would waste whoever has the GPU."""
    for step in steps(2):
        files = [word for word in step.command if word.endswith(".py") or word.startswith("tests")]
        assert all((run.__globals__["ROOT"] / file).exists() for file in files if not file.startswith("/")), step
