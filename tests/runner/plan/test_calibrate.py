"""Speeds are measured where a job would run, kept in a file, and said to be measured by the plan that reads them."""

import json
from pathlib import Path

import pytest
import torch

from runner.errors import UserError
from runner.plan.calibrate import measured, read_rates
from scripts.plan import main
from tests.distributed.placed import joined
from tests.ranks import World as TestWorld
from tests.ranks import on_ranks


def test_a_plan_reckons_with_what_was_measured(emoji: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, model = tmp_path / "speeds.json", f"model.path={emoji}"
    assert main([model, "--calibrate", str(file)]) == 0
    kept = json.loads(file.read_text())
    assert kept["dtype"] == "float32" and kept["device"] == "cpu"
    assert 1e8 < kept["flops"] < 1e14 and 1e8 < kept["link"] < 1e12 and kept["disk"] > 1e5
    assert main([model, "--bandwidths", str(file)]) == 0
    assert "speeds measured: flops, link, disk; assumed: within, between" in capsys.readouterr().out
    assert main([model, "--bandwidths", str(file), "--disk", "5"]) == 0
    assert "speeds measured: flops, link; stated: disk; assumed: within, between" in capsys.readouterr().out


def test_what_is_stated_comes_first(tmp_path: Path) -> None:
    file = tmp_path / "speeds.json"
    file.write_text('{"flops": 3.0, "disk": 7}')
    rates = read_rates(file, {"disk": 9.0})
    assert (rates.flops, rates.disk, rates.link) == (3.0, 9.0, 40e9)


@pytest.mark.parametrize("text", ["", "[]", '{"speed": 3}', '{"flops": -1}', '{"flops": NaN}'])
def test_a_file_without_speeds_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "speeds.json"
    file.write_text(text)
    with pytest.raises(UserError, match=r"holds no speeds; scripts/plan\.py --calibrate"):
        read_rates(file, {})


@on_ranks(2)
def test_ranks_measure_what_they_exchange_and_agree(world: TestWorld) -> None:
    ranks = joined(world)
    found = measured([], torch.bfloat16, ranks)
    assert set(found) == {"flops", "link", "within"} and min(found.values()) > 0
    assert ranks.gather(found) == [found, found]
