"""The runs of a folder, each with how it ended: from their own lines, and where a killed one left none, its samples."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runner.report.told import Told


@dataclass
class Run:
    name: str
    host: str = ""
    ranks: int | None = None
    device: str = ""
    began: float | None = None  # seconds of the epoch
    ended: float | None = None  # the last sign of it
    state: str = ""
    made: int | None = None
    note: str = ""

    @property
    def lasted(self) -> float | None:
        return None if self.began is None or self.ended is None else max(0.0, self.ended - self.began)


def runs(told: Told) -> list[Run]:
    """In their order."""
    found: dict[str, Run] = {}
    for line in told.runs:
        run = found.setdefault(str(line.get("run")), Run(str(line.get("run"))))
        run.host, run.device = str(line.get("host", run.host)), str(line.get("device", run.device))
        run.ranks, run.state = line.get("world_size", run.ranks), str(line.get("state", run.state))
        run.note = _note(line) or run.note
        _seen(run, line)
    for sample in told.samples:
        if (one := found.get(str(sample.get("run")))) is not None:
            _seen(one, sample)
            one.made = sample.get("made", one.made)
    last = list(found.values())[-1:]
    for one in found.values():
        if one.state == "running":
            one.state = told.state if [one] == last else "dead"
    return list(found.values())


def _seen(run: Run, line: Mapping[str, Any]) -> None:
    if isinstance(time := line.get("time"), int | float):
        run.began = time if run.began is None else min(run.began, time)
        run.ended = time if run.ended is None else max(run.ended, time)


def _note(line: Mapping[str, Any]) -> str:
    fault = line.get("fault")
    if isinstance(fault, dict):
        return f"rank {fault.get('rank')} on {fault.get('host')}: {fault.get('cause')}"
    return str(line.get("stopped") or "")
