"""What the rounds of a pipeline were like, for run.json and for whoever asked for ranks that had nothing to do."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Figures:
    """Of one component: how many rounds of each width, how many calls were shared out, why others were not, and what
    ended the rounds. `seconds`: from the end of the glue's patience until all results were there."""

    widths: Counter[int] = field(default_factory=Counter)
    shared_out: int = 0
    bytes_exchanged: int = 0
    seconds: float = 0.0
    serial: Counter[str] = field(default_factory=Counter)
    ended_by: Counter[str] = field(default_factory=Counter)


class RoundFigures:
    def __init__(self) -> None:
        self.components: dict[str, Figures] = {}

    def round(self, component: str, width: int, shared_out: int, crossed: int, seconds: float, why: str) -> None:
        figures = self.components.setdefault(component, Figures())
        figures.widths[width] += 1
        figures.shared_out += shared_out
        figures.bytes_exchanged += crossed
        figures.seconds += seconds
        figures.ended_by[why] += 1

    def serial(self, component: str, reason: str) -> None:
        self.components.setdefault(component, Figures()).serial[reason] += 1

    def described(self) -> dict[str, Any]:
        """For run.json."""
        return {
            name: {
                "widths": {str(width): number for width, number in sorted(one.widths.items())},
                "calls_shared_out": one.shared_out,
                "bytes_exchanged": one.bytes_exchanged,
                "seconds": round(one.seconds, 4),
                "serial": dict(one.serial),
                "ended_by": dict(one.ended_by),
            }
            for name, one in self.components.items()
        }
