"""The table of all benchmarks: their ratios, what failed, was given up or not run, and what is left of it."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import bench_all  # noqa: E402
from bench import found as kept  # noqa: E402
from bench.benches import BENCHES, Bench  # noqa: E402
from bench.results_page import results  # noqa: E402

FINDS = "import sys; sys.path.insert(0, 'scripts'); from bench.ratios import note; "


def bench(code: str, minutes: float = 1, name: str = "made-up") -> Bench:
    return Bench(name, f"Made up, {name}", f'python -c "{FINDS}{code}"', minutes, "anything")


def page_of(found: kept.Found, one: Bench) -> str:
    return results([found], {one.name: one})


def test_ratios_come_into_the_table_with_their_aim() -> None:
    one = bench("print('so'); note('ours / theirs', [0.8, 0.9, 1.0], 0.95); note('counted', [2], 1)")
    found = kept.run(one, 60)
    assert not found.failed and found.printed == "so\n"
    page = page_of(found, one)
    assert "| ours / theirs | 0.900 | 0.820 .. 0.980 | 0.95 | held |" in page
    assert "| counted | 2.000 | counted | 1 | MISSED |" in page
    assert "of 2 aims 1 are held and 1 missed; none failed" in page


@pytest.mark.parametrize(
    ("code", "seconds", "told"),
    [
        ("sys.exit(3)", 60, "FAILED with exit code 3"),
        ("import time; time.sleep(60)", 3, "GIVEN UP after 0.05 minutes"),
    ],
)
def test_what_fails_stands_in_the_table(code: str, seconds: float, told: str) -> None:
    one = bench(f"note('before', [1.0]); {code}")
    found = kept.run(one, seconds)
    assert found.failed == told
    page = page_of(found, one)
    assert f"**{told}**" in page and "| before | 1.000" in page


def test_each_is_on_the_disk_when_it_is_over_and_one_that_fails_loses_no_other(tmp_path: Path) -> None:
    benches = [bench("note('a', [1.0])", name="first"), bench("sys.exit(1)", name="second"), bench("1", name="third")]
    assert bench_all.run_all(benches, tmp_path, minutes=5) == ["second"]
    page = (tmp_path / "RESULTS.md").read_text()
    assert "| a | 1.000" in page and "**FAILED with exit code 1**" in page and "## Made up, third" in page
    assert (tmp_path / "first.png").is_file()
    assert [one.name for one in bench_all.left(benches, kept.load(tmp_path, benches))] == ["second"]


def test_what_would_take_too_long_is_told_and_not_run(tmp_path: Path) -> None:
    one = bench(f"open('{tmp_path}/ran', 'w')", minutes=10)
    assert bench_all.run_all([one], tmp_path, minutes=2) == ["made-up"]
    assert not (tmp_path / "ran").exists()
    assert "**NOT RUN: 2.0 of 2 minutes were left, and it takes 10**" in (tmp_path / "RESULTS.md").read_text()


def test_what_was_found_at_another_commit_is_run_again(tmp_path: Path) -> None:
    one = bench("1")
    found = kept.run(one, 60)
    found.commit = "earlier"
    found.save(tmp_path)
    assert bench_all.left([one], kept.load(tmp_path, [one])) == [one]


def test_what_is_planned_is_announced_with_its_minutes() -> None:
    told = bench_all.announced([bench("1", 3), bench("1", 4.5, "other")], 40)
    assert "2 benchmarks, about 8 minutes of 40" in told and "other           4.5 min" in told


def test_each_is_a_script_that_is_there_and_all_take_forty_minutes_at_most() -> None:
    for one in BENCHES:
        script = next(word for word in one.command.split() if word.startswith("scripts/"))
        assert (ROOT / script).is_file(), one.name
    assert sum(one.minutes for one in BENCHES) <= 40
    assert len({one.name for one in BENCHES}) == len(BENCHES)
