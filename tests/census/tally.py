"""What became of the cases, told as a table with a line for each, and held against how many passed before.

A test tells its case as a property of its report, since the tests may be shared out over several processes; the one
that collects the reports has the tally.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import pytest

COUNTS = Path(__file__).parent / "counts.json"
TITLE = "census against stock: resident, sharded over 2 ranks, from disk, two in a group"


@dataclass
class Told:
    """Of one case: the packages that it lacks here, or by arm what went wrong, and the seconds that it took."""

    missing: list[str] = field(default_factory=list)
    results: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return not self.missing and bool(self.results) and not any(self.results.values())


class Tally:
    """A plugin of pytest: by name, what the cases' tests told."""

    def __init__(self) -> None:
        self.told: dict[str, Told] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, value in report.user_properties:
            if name.startswith("census "):
                self.told[name.removeprefix("census ")] = Told(**value)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.told:
            terminalreporter.section(TITLE)
            for line in (*self.lines(), *self.miscounted()):
                terminalreporter.write_line(line)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if not hasattr(session.config, "workerinput") and self.miscounted():
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def lines(self) -> Iterator[str]:
        """The table, and the count."""
        for name, told in sorted(self.told.items()):
            if told.missing:
                yield f"{name:<48} not here: needs {', '.join(told.missing)}"
                continue
            arms = "  ".join(f"{arm} {'no' if wrong else 'ok'}" for arm, wrong in told.results.items())
            yield f"{name:<48} {arms}  {sum(told.seconds.values()):5.1f} s"
            for error in dict.fromkeys(filter(None, told.results.values())):
                yield f"    {error.splitlines()[0][:200]}"
        yield f"{self._passed} of {len(self.told)} pipelines give the stock bits in every placement, {_environment()}"

    def miscounted(self) -> list[str]:
        """Where all cases were tried, and another number passed than counts.json says."""
        if not self.told:
            return []
        from tests.census.cases import CASES  # all of diffusers' classes: not for every run of other tests

        wanted = json.loads(COUNTS.read_text())[_environment()]
        if self.told.keys() != CASES.keys() or self._passed == wanted:
            return []
        return [f"FAILED: {wanted} passed before; if there are more now, write the number into {COUNTS.name}"]

    @property
    def _passed(self) -> int:
        return sum(told.passed for told in self.told.values())


def _environment() -> str:
    return "with torchvision" if find_spec("torchvision") else "without torchvision"
