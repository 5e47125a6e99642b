"""Training follows its time budget and continues where it stopped."""

from pathlib import Path

import pytest
import torch
from torch import nn

from scripts.emoji.files import write_atomically
from scripts.emoji.schedule import is_finished, learning_rate_scale, train


def run(checkpoint: Path, *, minutes: float) -> tuple[nn.Linear, int]:
    """Trains one layer towards zero; returns it and the number of steps made in this run."""
    model, num_steps = nn.Linear(2, 1), 0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(progress: float) -> torch.Tensor:
        nonlocal num_steps
        assert 0 <= progress < 1
        num_steps += 1
        loss = model(torch.ones(1, 2)).square().sum()
        loss.backward()
        return loss

    train(checkpoint, {"model": model}, [optimizer], step, minutes=minutes)
    return model, num_steps


def test_the_learning_rate_warms_up_stays_and_ends_at_zero() -> None:
    assert learning_rate_scale(0.0) == pytest.approx(0.01)
    assert learning_rate_scale(0.02) == learning_rate_scale(0.5) == 1
    tail = [learning_rate_scale(progress / 100) for progress in range(50, 101)]
    assert tail == sorted(tail, reverse=True)
    assert tail[-1] == 0


def test_a_finished_training_is_not_continued_unless_the_budget_grows(tmp_path: Path) -> None:
    checkpoint = tmp_path / "layer.pt"
    model, num_steps = run(checkpoint, minutes=0.002)
    assert num_steps > 0
    assert is_finished(checkpoint, 0.002) and not is_finished(checkpoint, 0.1)

    again, more_steps = run(checkpoint, minutes=0.002)
    assert more_steps == 0
    assert torch.equal(again.weight, model.weight)

    _, more_steps = run(checkpoint, minutes=0.004)
    assert more_steps > 0
    assert torch.load(checkpoint, weights_only=True)["num_steps"] == num_steps + more_steps


def test_the_last_step_is_saved_whatever_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that moves one second a step ends the budget right after step 100, where the losses are printed."""
    progress = iter([step / 100 for step in range(101)])
    monkeypatch.setattr("scripts.emoji.schedule.Budget.progress", property(lambda _: next(progress)))
    checkpoint = tmp_path / "layer.pt"
    model, num_steps = run(checkpoint, minutes=1)
    saved = torch.load(checkpoint, weights_only=True)
    assert num_steps == saved["num_steps"] == 100
    assert torch.equal(saved["model"]["weight"], model.weight)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, lambda temporary: temporary.write_text("old"))

    def fail(temporary: Path) -> None:
        temporary.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
