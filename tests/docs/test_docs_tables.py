"""Tables in the documents say what the code says."""

import configparser
import re

import pytest

from runner.config import KNOBS, describe
from runner.errors import ExitCode
from tests.docs import documents
from tests.docs.documents import ROOT
from tests.test_imports import FLOORS, PACKAGES

ARCHITECTURE = ROOT / "docs" / "architecture.md"


@pytest.mark.parametrize("document", ["README.md", "docs/jobs.md"])
def test_exit_codes_are_those_of_the_code(document: str) -> None:
    """A wrong command leaves run.json alone, so that it has no state."""
    rows = documents.table(ROOT / document, "exit code", "state")
    told = [(int(code), state) for code, state, _ in rows]
    assert told == [(code.value, "" if code is ExitCode.WRONG else code.name.lower()) for code in ExitCode]


def test_the_rooms_are_those_that_the_imports_are_tested_for() -> None:
    rows = documents.table(ARCHITECTURE, "floor", "rooms")
    assert [set(documents.in_spans(rooms)) for _, rooms, _ in rows] == list(FLOORS)
    assert [number for number, _, _ in rows] == [str(number) for number in range(1, len(FLOORS) + 1)]


def test_the_packages_are_those_that_the_imports_are_tested_for() -> None:
    rows = documents.table(ARCHITECTURE, "package", "may import")
    told = {documents.in_spans(package)[0]: set(documents.in_spans(below)) for package, below, _ in rows}
    assert told == PACKAGES


def test_the_placements_are_those_that_can_be_built() -> None:
    rows = documents.table(ROOT / "docs" / "placements.md", "share", "rest")
    assert {(documents.in_spans(row[0])[0], documents.in_spans(row[1])[0]) for row in rows} == set(KNOBS)


def test_the_keys_are_those_of_the_schema() -> None:
    """test_docs_commands.py compares the lines; here, that none is missing."""
    (shown,) = (
        command for command in documents.commands(ROOT / "docs" / "configuration.md") if "--help" in command.words
    )
    assert [line.split()[0] for line in (shown.prints or "").splitlines()] == [key for key, _, _ in describe()]


def test_the_marks_are_those_of_the_test_configuration() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    marks = re.findall(r"^(\w+):", setup["tool:pytest"]["markers"], re.MULTILINE)
    rows = documents.table(ROOT / "CONTRIBUTING.md", "mark", "what it means")
    assert [documents.in_spans(row[0])[0] for row in rows] == marks


def test_what_ci_runs_is_told() -> None:
    targets = re.findall(r"^make ([\w-]+)", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    told = "\n".join(documents.prose(ROOT / "CONTRIBUTING.md"))
    assert targets and all(f"`make {target}`" in told for target in targets)
