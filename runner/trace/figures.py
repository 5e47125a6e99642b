"""Where the time went: what a recorder's sums come to, for each component and for the rank."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from runner.trace.interval import Lane
from runner.trace.sums import Kind, Sum

STAGES = ("encode", "denoise", "decode")
WARM_UP, STEADY = "warm-up", "steady"


@dataclass
class Figures:
    """Of the calls of a component, in seconds.

    `compute`: the calls, without the waits, meetings and exchanges inside them. `exposed_wait`: what computes
    stood and waited for weights. `transfer`: weights were on their way.
    """

    calls: int = 0
    compute: float = 0.0
    exposed_wait: float = 0.0
    transfer: float = 0.0
    exchange: float = 0.0
    num_bytes: int = 0

    @property
    def hidden(self) -> float:
        """Of the transfer: while something waits for weights they are on their way, and the rest was behind work."""
        return max(0.0, self.transfer - self.exposed_wait)

    @property
    def overlap_percent(self) -> float | None:
        """How much of the transfer was hidden; None where nothing moved."""
        return round(100 * self.hidden / self.transfer, 1) if self.transfer > 0 else None

    def add(self, kind: Kind, total: Sum) -> None:
        if kind.inside == "component" and kind.lane in (Lane.wait, Lane.exchange):
            self.compute -= total.seconds
        if kind.name == "component":
            self.calls += total.times
            self.compute += total.seconds
        elif kind.name == "wait":
            self.exposed_wait += total.seconds
        elif kind.lane is Lane.prefetch:
            self.transfer += total.seconds
        elif kind.lane is Lane.exchange:
            self.exchange += total.seconds
        else:
            return
        self.num_bytes += total.num_bytes

    def to_json(self) -> dict[str, Any]:
        return {
            "calls": self.calls,
            "compute": round(self.compute, 4),
            "exposed_wait": round(self.exposed_wait, 4),
            "transfer": round(self.transfer, 4),
            "hidden": round(self.hidden, 4),
            "overlap_percent": self.overlap_percent,
            "exchange": round(self.exchange, 4),
            "num_bytes": self.num_bytes,
        }


@dataclass
class Where:
    """Of a rank. Beside its components: `glue` is the pipelines' own code between their calls, `meet` waiting for other
    ranks, `write` outputs that were written while nothing else was done. What is left of `seconds` is `other`."""

    seconds: float
    components: dict[tuple[str, str, bool], Figures] = field(default_factory=dict)  # by stage, name, is a warm-up
    glue: float = 0.0
    meet: float = 0.0
    write: float = 0.0
    written_beside: float = 0.0  # by other threads, in the same seconds
    other: float = 0.0

    def to_json(self, steps: Mapping[tuple[str, bool], int]) -> dict[str, Any]:
        """`steps`: how many there were, by stage and whether they were warm-ups."""
        said: dict[str, Any] = {"seconds": round(self.seconds, 4), "steps": [], "components": []}
        for (stage, is_warm_up), number in sorted(steps.items(), key=lambda item: _order(item[0][0], "", item[0][1])):
            part = WARM_UP if is_warm_up else STEADY
            of_part = [f for (of, _, warm), f in self.components.items() if (of, warm) == (stage, is_warm_up)]
            seconds = sum(one.compute + one.exposed_wait + one.exchange for one in of_part)
            moved = sum(one.num_bytes for one in of_part)
            each = {"seconds_per_step": round(seconds / number, 6), "bytes_per_step": round(moved / number)}
            said["steps"].append({"stage": stage, "part": part, "number": number} | each)
        for (stage, name, is_warm_up), figures in self.components.items():
            part = WARM_UP if is_warm_up else STEADY
            said["components"].append({"stage": stage, "component": name, "part": part} | figures.to_json())
        rest = {name: getattr(self, name) for name in ("glue", "meet", "write", "written_beside", "other")}
        return said | {name: round(seconds, 4) for name, seconds in rest.items()}


def where(sums: Mapping[Kind, Sum], seconds: float) -> Where:
    """`seconds` passed in all."""
    found, between = Where(seconds), 0.0
    for kind, total in sums.items():
        if kind.component:
            found.components.setdefault((kind.stage, kind.component, kind.is_warm_up), Figures()).add(kind, total)
        in_glue = kind.inside == "request" and kind.lane in (Lane.wait, Lane.exchange)
        if kind.name == "request":
            found.glue += total.seconds
        elif kind.name == "component" or in_glue:
            found.glue -= total.seconds
        if kind.name == "meet":
            found.meet += total.seconds
        if kind.lane is Lane.write and kind.inside == "beside":
            found.written_beside += total.seconds
        elif kind.lane is Lane.write:
            found.write += total.seconds
        if kind.name == "request" or (not kind.inside and kind.lane in (Lane.wait, Lane.exchange, Lane.write)):
            between += total.seconds
    found.other = max(0.0, seconds - between)
    found.components = dict(sorted(found.components.items(), key=lambda item: _order(*item[0])))
    return found


def _order(stage: str, component: str, is_warm_up: bool) -> tuple[int, str, bool]:
    return STAGES.index(stage) if stage in STAGES else len(STAGES), component, not is_warm_up
