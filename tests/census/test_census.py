"""Every pipeline of diffusers with a transformer gives the stock bits through generate.py's path: resident, sharded
over two ranks, from disk, and two requests together from disk."""

import json
from pathlib import Path

import pytest

from tests.census.arms import make_case, results, seconds
from tests.census.cases import CASES, MISSING, SAMPLE, transformer_pipelines
from tests.census.page import PAGE, page
from tests.census.tally import Tally
from tests.ranks import Worlds

COUNTS = Path(__file__).parent / "counts.json"


@pytest.mark.parametrize("name", SAMPLE)
def test_a_sample_gives_the_stock_bits(name: str, worlds: Worlds, tmp_path: Path) -> None:
    _census(name, worlds, tmp_path, Tally())


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_gives_the_stock_bits_in_every_placement(name: str, worlds: Worlds, tmp_path: Path, tally: Tally) -> None:
    _census(name, worlds, tmp_path, tally)


@pytest.mark.slow
def test_no_fewer_pass_than_before(tally: Tally) -> None:
    """The numbers in counts.json: with torchvision (`make test-tasks`), and without."""
    if tally.tried != set(CASES):
        pytest.skip("only some cases were tried")
    wanted = json.loads(COUNTS.read_text())[tally.environment]
    passed = len(tally.passed)
    assert passed >= wanted, f"{passed} pipelines pass {tally.environment}; {wanted} did before"
    assert passed == wanted, (
        f"{passed} pipelines pass {tally.environment}: write it into {COUNTS.name}, it was {wanted}"
    )


def test_every_transformer_pipeline_has_a_case_or_a_reason() -> None:
    assert sorted([*CASES, *MISSING]) == sorted(transformer_pipelines())


def test_the_page_of_tasks_says_what_the_census_does() -> None:
    assert PAGE.read_text() == page(), "write it anew: python -m tests.census.page"


def _census(name: str, worlds: Worlds, folder: Path, tally: Tally) -> None:
    case = CASES[name]
    tally.tried.add(name)
    if case.missing:
        tally.skipped[name] = case.missing
        pytest.skip(f"{name} needs {', '.join(case.missing)}")
    worlds.run(2, make_case.on_each_rank, folder, {"name": name})  # type: ignore[attr-defined]
    wrong = tally.results[name] = results(folder)
    tally.seconds[name] = seconds(folder)
    if case.gap:
        assert any(wrong.values()), f"{name} runs: take away its gap, {case.gap!r}"
        pytest.xfail(case.gap)
    assert not any(wrong.values()), f"{name}: {wrong}"
