"""Every pipeline of diffusers with a transformer gives the stock bits through generate.py's path: resident, sharded
over two ranks, from disk, and two requests together from disk."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.census.arms import make_case, results, seconds
from tests.census.cases import CASES, MISSING, SAMPLE, transformer_pipelines
from tests.census.page import PAGE, page
from tests.census.tally import Tally, Told
from tests.ranks import Worlds

Tell = Callable[[str, object], None]


@pytest.mark.parametrize("name", SAMPLE)
def test_a_sample_gives_the_stock_bits(name: str, worlds: Worlds, tmp_path: Path) -> None:
    _census(name, worlds, tmp_path, lambda *_: None)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_gives_the_stock_bits_in_every_placement(
    name: str, worlds: Worlds, tmp_path: Path, record_property: Tell
) -> None:
    _census(name, worlds, tmp_path, record_property)


def test_another_number_of_cases_that_pass_fails_the_run() -> None:
    tally = Tally()
    tally.told = {name: Told(results={"resident": ""}) for name in list(CASES)[1:]}
    assert not tally.miscounted(), "only some cases were tried"
    tally.told[next(iter(CASES))] = Told(results={"resident": "other bits"})
    assert tally.miscounted(), "fewer are without torchvision"


def test_every_transformer_pipeline_has_a_case_or_a_reason() -> None:
    assert sorted([*CASES, *MISSING]) == sorted(transformer_pipelines())


def test_the_page_of_tasks_says_what_the_census_does() -> None:
    assert PAGE.read_text() == page(), "write it anew: python -m tests.census.page"


def _census(name: str, worlds: Worlds, folder: Path, tell: Tell) -> None:
    case = CASES[name]
    if case.missing:
        tell(f"census {name}", asdict(Told(missing=list(case.missing))))
        pytest.skip(f"{name} needs {', '.join(case.missing)}")
    worlds.run(2, make_case.on_each_rank, folder, {"name": name})  # type: ignore[attr-defined]
    wrong = results(folder)
    tell(f"census {name}", asdict(Told(results=wrong, seconds=seconds(folder))))
    if case.gap:
        assert any(wrong.values()), f"{name} runs: take away its gap, {case.gap!r}"
        pytest.xfail(case.gap)
    assert not any(wrong.values()), f"{name}: {wrong}"
