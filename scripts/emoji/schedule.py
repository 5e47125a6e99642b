"""Training under a time budget: progress is the share of the minutes spent, and it survives an interruption.

Steps are not counted in advance, because on a shared machine nobody knows how long one takes. The learning rate
therefore follows the share of the budget that is spent: whatever the machine does, the decay ends when the time does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .files import write_atomically


@dataclass
class Budget:
    """Minutes of training, those before the last interruption included."""

    minutes: float
    spent_before: float = 0.0  # seconds
    _start: float = field(default_factory=time.monotonic)

    @property
    def spent(self) -> float:
        """Seconds of training so far."""
        return self.spent_before + time.monotonic() - self._start

    @property
    def progress(self) -> float:
        """The share of the budget that is spent, from 0 to 1."""
        return min(1.0, self.spent / (60 * self.minutes))


def learning_rate_scale(progress: float, *, warmup: float = 0.02, decay: float = 0.5) -> float:
    """Warms up, stays at 1, and falls to 0 over the last `decay` of the budget, as 1 - sqrt (Hägele et al., 2024)."""
    if progress < warmup:
        return max(progress / warmup, 0.01)
    tail = (progress - (1 - decay)) / decay
    return 1.0 if tail <= 0 else 1.0 - tail**0.5


def train(
    checkpoint: Path,
    state: dict[str, Any],
    optimizers: Sequence[torch.optim.Optimizer],
    step: Callable[[float], torch.Tensor],
    *,
    minutes: float,
    save_every: float = 120.0,
    on_save: Callable[[], None] = lambda: None,
) -> None:
    """Runs `step` until the budget is spent, from `checkpoint` if there is one.

    Args:
        checkpoint: Where everything is saved every `save_every` seconds and at the end.
        state: What to save and restore, by name: anything with `state_dict` and `load_state_dict`.
        optimizers: Their learning rates are scaled by the budget's progress; they are saved too.
        step: Given the progress, computes a batch's gradients and returns the loss; the update is made here.
        minutes: The whole budget, time spent before an interruption included. A later run may change it.
        save_every: Seconds between checkpoints.
        on_save: Called after every checkpoint, for instance to export what there is.
    """
    state = state | {f"optimizer{index}": optimizer for index, optimizer in enumerate(optimizers)}
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    full_rates = [group["lr"] for group in groups]
    parameters = [parameter for group in groups for parameter in group["params"]]
    num_steps, budget = 0, Budget(minutes)
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        for name, part in state.items():
            part.load_state_dict(saved[name])
        num_steps, budget = saved["num_steps"], Budget(minutes, spent_before=saved["spent"])
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]  # loading made new ones

    def save() -> None:
        content = {name: part.state_dict() for name, part in state.items()}
        content |= {"num_steps": num_steps, "spent": budget.spent}
        write_atomically(checkpoint, lambda temporary: torch.save(content, temporary))
        on_save()

    last_saved, losses, unsaved = time.monotonic(), [], False
    # Read once a step: the clock moves on, and every part of a step is to see the same progress.
    while (progress := budget.progress) < 1:
        for group, rate in zip(groups, full_rates, strict=True):
            group["lr"] = rate * learning_rate_scale(progress)
        for optimizer in optimizers:
            optimizer.zero_grad()
        losses.append(step(progress).detach())
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            optimizer.step()
        num_steps += 1
        unsaved = True
        if num_steps % 100 == 0:
            loss = torch.stack(losses).mean().item()
            losses.clear()
            print(f"step {num_steps:6d}  loss {loss:.4f}  {budget.spent / 60:6.2f} of {minutes:g} min", flush=True)
        if time.monotonic() - last_saved > save_every:
            save()
            last_saved, unsaved = time.monotonic(), False
    if unsaved:
        save()


def is_finished(checkpoint: Path, minutes: float) -> bool:
    """Whether the training that writes `checkpoint` has spent its budget."""
    return checkpoint.exists() and torch.load(checkpoint, weights_only=True)["spent"] >= 60 * minutes
