"""The ratios that a benchmark found, for whoever puts the figures of several into one table: scripts/bench_all.py."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

FILE = "DIT_BENCH_RATIOS"  # names the file that ratios are added to, a line each; without it nothing is written


@dataclass(frozen=True)
class Ratio:
    """Of two times or sizes, paired: the median, the 10th and the 90th percentile, and what it should be at most.
    Below 1 the left one of the label is less."""

    label: str
    median: float
    low: float
    high: float
    aim: float | None = None

    @property
    def verdict(self) -> str:
        return "" if self.aim is None else "held" if self.median <= self.aim else "MISSED"


def note(label: str, values: Sequence[float] | np.ndarray, aim: float | None = None) -> None:
    """`values`: the ratio of each round; three or more, or one that is counted and has no spread."""
    if (file := os.environ.get(FILE)) is not None:
        low, median, high = (float(value) for value in np.percentile(np.asarray(values, dtype=float), (10, 50, 90)))
        with Path(file).open("a") as stream:
            stream.write(json.dumps(asdict(Ratio(label, median, low, high, aim))) + "\n")


def read(file: Path) -> list[Ratio]:
    return [Ratio(**json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []
