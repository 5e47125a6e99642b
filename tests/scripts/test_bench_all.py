"""The table of all benchmarks: their ratios, and what failed or was given up, which is never left out."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import bench_all  # noqa: E402
from bench_all import BENCHES, Bench  # noqa: E402

FINDS = "import sys; sys.path.insert(0, 'scripts'); from bench.ratios import note; "


def bench(code: str, minutes: float = 1) -> Bench:
    return Bench("made-up", "Made up", f'python -c "{FINDS}{code}"', minutes, "anything")


def test_ratios_come_into_the_table_with_their_aim() -> None:
    found = bench_all._run(bench("print('so'); note('ours / theirs', [0.8, 0.9, 1.0], 0.95); note('counted', [2], 1)"))
    assert not found.failed and found.printed == "so\n"
    page = bench_all.results([found])
    assert "| ours / theirs | 0.900 | 0.820 .. 0.980 | 0.95 | held |" in page
    assert "| counted | 2.000 | counted | 1 | MISSED |" in page


@pytest.mark.parametrize(
    ("code", "minutes", "told"),
    [
        ("sys.exit(3)", 1, "FAILED with exit code 3"),
        ("import time; time.sleep(60)", 0.1, "GIVEN UP after 0.2 minutes"),
    ],
)
def test_what_fails_stands_in_the_table(code: str, minutes: float, told: str) -> None:
    found = bench_all._run(bench(f"note('before', [1.0]); {code}", minutes))
    assert found.failed == told
    page = bench_all.results([found])
    assert f"**{told}**" in page and "| before | 1.000" in page


def test_each_is_a_script_that_is_there_and_all_take_forty_minutes_at_most() -> None:
    for one in BENCHES:
        script = next(word for word in one.command.split() if word.startswith("scripts/"))
        assert (ROOT / script).is_file(), one.name
    assert sum(one.minutes for one in BENCHES) <= 40
