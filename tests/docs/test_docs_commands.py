"""Every command that the documents show does what it says, as far as a test can wait for it.

Commands are the lines of `sh` blocks, run in a copy of the repository. By their program:

  scripts/generate.py    run to its end, with what stand_ins.py puts in the place of large models and many ranks.
                         Commands of one number of ranks share one start of them. A `text` block that follows directly
                         is what is printed; where it begins with "error:", the exit code is 2, else 0
  other scripts          every option is in the script's --help: they measure for minutes
  make TARGET            `make -n`: a target sets up an environment, or runs for minutes. The files it names exist, and
                         what it calls generate.py with is run as above
  pytest                 the folders exist, -k finds a test, the marks are declared: it would run the suite in itself
  sbatch                 the script is sound bash, and its settings are known
  source                 .venv/bin/activate, which `make setup` makes
"""

import configparser
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from runner.config import load_config
from runner.errors import ExitCode, UserError
from runner.job.prompts import read_prompts
from scripts.generate import parse
from tests.docs import documents, stand_ins
from tests.docs.documents import DOCUMENTS, ROOT, Command
from tests.processes import run_command

HERE = Path(__file__).parent
COMMANDS = [command for document in DOCUMENTS for command in documents.commands(document)]
NOT_COPIED = (".git", ".venv", "outputs", ".cache", "__pycache__", "*.egg-info", ".mypy_cache", ".pytest_cache")
LANGUAGES = {"sh", "text", "yaml", "json"}


@dataclass(frozen=True)
class Launch:
    """A command of python or torchrun, shown or in a make target: the ranks, the script or module, its arguments."""

    command: Command
    ranks: int
    target: str
    arguments: tuple[str, ...]


def launches_of(command: Command) -> list[Launch]:
    if command.program in ("python", "torchrun"):
        return [_launch(command, command.words)]
    if command.program == "make":
        return [_launch(command, words) for words in _recipe(command.words[1]) if "scripts/generate.py" in words]
    return []


def _recipe(target: str) -> list[list[str]]:
    """The commands of a target, without the place of the environment."""
    found = re.search(rf"^{target}:.*\n((?:\t.*\n)*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return [shlex.split(line.replace("$(BIN)/", "")) for line in (found[1].splitlines() if found else [])]


def _launch(command: Command, shown: Sequence[str]) -> Launch:
    words, ranks = list(shown[1:]), 1
    if shown[0] == "torchrun":
        while words[0].startswith("--"):
            option = words.pop(0)
            if option == "--nproc-per-node":
                ranks = int(words.pop(0))
            else:
                assert option == "--standalone", f"{command.where}: the test knows no {option} of torchrun"
    target = words[1] if words[0] == "-m" else words[0]
    return Launch(command, ranks, target, tuple(words[2 if words[0] == "-m" else 1 :]))


LAUNCHES = [launch for command in COMMANDS for launch in launches_of(command)]
GENERATE = [launch for launch in LAUNCHES if launch.target == "scripts/generate.py"]
PYTEST = [launch for launch in LAUNCHES if launch.target == "pytest"]
SCRIPTS = [launch for launch in LAUNCHES if launch not in GENERATE + PYTEST]


def of(program: str) -> list[Command]:
    return [command for command in COMMANDS if command.program == program]


def where(shown: Launch | Command) -> str:
    return shown.command.where if isinstance(shown, Launch) else shown.where


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory, tiny_root: Path) -> Path:
    """The repository, and the files that the documents show."""
    folder = tmp_path_factory.mktemp("docs") / "dit-runner"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*NOT_COPIED))
    for document in DOCUMENTS:
        for block in documents.blocks(document):
            if block.file:
                assert not (folder / block.file).exists(), f"{block.where}: there is a {block.file} already"
                (folder / block.file).write_text(stand_ins.replaced(block.text, tiny_root) + "\n")
    return folder


@pytest.fixture(scope="module")
def outcomes(copy: Path, tiny_root: Path) -> dict[str, tuple[int, str]]:
    """Exit code and output of each command of generate.py, by where it stands."""
    found: dict[str, tuple[int, str]] = {}
    for ranks in range(stand_ins.MOST_RANKS, 0, -1):
        launches = [launch for launch in GENERATE if min(launch.ranks, stand_ins.MOST_RANKS) == ranks]
        listing, results = copy.parent / f"commands-{ranks}", copy.parent / f"outcomes-{ranks}"
        lines = [[stand_ins.replaced(word, tiny_root) for word in small(launch, copy)] for launch in launches]
        listing.write_text("".join(json.dumps(line) + "\n" for line in lines))
        start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
        script = [str(HERE / "generate_on_ranks.py"), str(listing), str(results)]
        log = run(copy, sys.executable, *start, *script)
        ends = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
        assert len(ends) == len(launches), f"{where(launches[len(ends)])} ended all: {log}"
        for launch, end in zip(launches, ends, strict=True):
            found[where(launch)] = end["code"], end["printed"]
    return found


def small(launch: Launch, copy: Path) -> Sequence[str]:
    """The words of a command, and those that make it quick."""
    if "--help" in launch.arguments:
        return launch.arguments
    words = parse(launch.arguments).words
    file = next((word for word in words if "=" not in word), "configs/generate.yaml")
    assert (copy / file).is_file(), f"{where(launch)}: no {file}"
    try:
        path = load_config(copy / file, [word for word in words if "=" in word]).model.path
    except UserError:  # shown as a mistake
        return launch.arguments
    shown = next((shown for shown, family in stand_ins.MODELS.items() if path.endswith(f"/{family}")), path)
    return *launch.arguments, *stand_ins.SMALL[shown]


def run(folder: Path, *command: str) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    environment |= {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    result = run_command(command, cwd=folder, env=environment, timeout=400)
    assert result.returncode == 0, f"{shlex.join(command)}: {result.stderr}"
    return result.stdout


def test_every_fence_says_what_it_holds() -> None:
    for document in DOCUMENTS:
        for block in documents.blocks(document):
            assert block.language in LANGUAGES, f"{block.where}: {block.language or 'nothing'}; one of {LANGUAGES}"


def test_every_command_is_of_a_kind_that_is_tested() -> None:
    tested = {"python", "torchrun", "make", "sbatch", "source"}
    assert [command.where for command in COMMANDS if command.program not in tested] == []
    for launch in SCRIPTS:
        assert (ROOT / launch.target).is_file(), f"{where(launch)}: no {launch.target}"
    assert {command.words for command in of("source")} <= {("source", ".venv/bin/activate")}


@pytest.mark.slow
@pytest.mark.parametrize("launch", GENERATE, ids=where)
def test_generate_does_what_is_shown(launch: Launch, outcomes: dict[str, tuple[int, str]]) -> None:
    code, printed = outcomes[where(launch)]
    prints = launch.command.prints or ""
    assert code == (ExitCode.WRONG if prints.startswith("error:") else ExitCode.DONE), printed
    told = [" ".join(line.split()) for line in printed.splitlines()]
    for line in filter(None, (" ".join(line.split()) for line in prints.splitlines())):
        assert line in told, printed


@pytest.mark.slow
@pytest.mark.usefixtures("outcomes")
def test_the_readmes_first_job_leaves_the_files_that_it_names(copy: Path) -> None:
    rows = documents.table(ROOT / "README.md", "in the output folder", "what it is")
    names = [name for row in rows for name in documents.in_spans(row[0])]
    there = {path.name for path in (copy / "outputs" / "fox").iterdir()}
    assert {name.strip("/") for name in names} - there == {"failures.jsonl", "thumbnails"}  # small ones have none


@pytest.mark.slow
def test_the_options_shown_are_in_each_scripts_help() -> None:
    shown = run(ROOT, sys.executable, str(HERE / "show_help.py"), *dict.fromkeys(launch.target for launch in SCRIPTS))
    helps = json.loads(shown)
    for launch in SCRIPTS:
        for word in launch.arguments:
            value = re.escape(word.partition("=")[0])
            # Of the option before it, or a folder: a number, a size, a reader's own word, a path, a file.
            is_value = re.fullmatch(r"[0-9.]+(GiB)?|[A-Z]+|[\w.-]+(/[\w.-]+)+|\w+\.json", word)
            assert is_value or re.search(rf"(?<![\w-]){value}(?![\w-])", helps[launch.target]), where(launch)


@pytest.mark.parametrize("command", of("make"), ids=where)
def test_make_knows_the_target(command: Command, copy: Path) -> None:
    for line in run(copy, "make", "-n", *command.words[1:]).splitlines():
        for word in shlex.split(line, comments=True):
            if re.fullmatch(r"[\w-]+(/[\w.-]+)+", word):
                assert (copy / word).exists(), f"{command.where}: {word}"


@pytest.mark.parametrize("launch", PYTEST, ids=where)
def test_pytest_has_something_to_run(launch: Launch) -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    marks = re.findall(r"^(\w+):", setup["tool:pytest"]["markers"], re.MULTILINE)
    words, places, wanted = list(launch.arguments), [], ""
    while words:
        word = words.pop(0)
        if word == "-k":
            wanted = words.pop(0)
        elif word == "-m":
            assert set(re.findall(r"\w+", words.pop(0))) - {"not", "and", "or"} <= set(marks)
        elif not word.startswith("-"):
            places.append(ROOT / word)
    assert places and all(place.exists() for place in places), where(launch)
    files = [file for place in places for file in ([place] if place.is_file() else place.rglob("test_*.py"))]
    assert any(re.search(rf"^def test_\w*{wanted}", file.read_text(), re.MULTILINE) for file in files), where(launch)


@pytest.mark.parametrize("command", of("sbatch"), ids=where)
def test_a_batch_job_is_sound(command: Command, copy: Path) -> None:
    script = next(index for index, word in enumerate(command.words) if word.endswith(".sbatch"))
    run(copy, "bash", "-n", command.words[script])
    files = [word for word in command.words[script + 1 :] if "=" not in word]
    load_config(copy / files[0] if files else None, [word for word in command.words[script + 1 :] if "=" in word])


def test_the_files_that_are_shown_can_be_read(copy: Path) -> None:
    for document in DOCUMENTS:
        for block in documents.blocks(document):
            if block.language == "yaml":
                load_config(copy / block.file, [])
            elif block.language == "json":
                assert read_prompts(copy / block.file)
