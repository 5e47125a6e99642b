"""The table of the census, printed at the end of a run that tried it."""

import pytest

from tests.census.tally import Tally

TALLY = pytest.StashKey[Tally]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TALLY] = Tally()


@pytest.fixture
def tally(pytestconfig: pytest.Config) -> Tally:
    return pytestconfig.stash[TALLY]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    tally = config.stash[TALLY]
    if tally.tried:
        terminalreporter.section("census against stock: resident, sharded over 2 ranks, from disk, two in a group")
        for line in tally.lines():
            terminalreporter.write_line(line)
