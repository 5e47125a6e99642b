"""The trace of each rank as rows of intervals that a page can draw: small, since there are many."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from runner.output.folder import Folder
from runner.output.write import parse_object
from runner.report.page.distinct import Distinct
from runner.trace.interval import Interval

_INTERVALS = 120_000  # on the page, of all ranks together
_ROWS = ("request", "stage", "component", "block", "wait", "prefetch", "exchange", "write")


def timeline(folder: Folder, num_ranks: int) -> dict[str, Any]:
    """For each rank with a trace, its rows; times in microseconds from `began`, seconds of the epoch. `is_cut`: the
    page holds the beginning only. Empty where nothing was traced."""
    files = [(rank, file) for rank in range(num_ranks) if (file := folder.intervals(rank)).exists()]
    labels, requests, ranks, is_cut, began = Distinct(), Distinct(), [], False, None
    for rank, file in files:
        lines = _lines(file)
        head = next(lines, {})
        began = head.get("began", began) if began is None else began
        intervals, cut = _first(lines, _INTERVALS // len(files))
        is_cut |= cut
        ranks.append({"rank": rank, "rows": _rows(intervals, labels, requests)})
    return {"began": began, "ranks": ranks, "labels": labels.values, "requests": requests.values, "is_cut": is_cut}


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    """One at a time: a trace may be larger than memory should be."""
    with file.open("rb") as stream:
        for line in stream:
            if (value := parse_object(line)) is not None:
                yield value


def _first(lines: Iterable[dict[str, Any]], number: int) -> tuple[list[Interval], bool]:
    found: list[Interval] = []
    for line in lines:
        if (interval := Interval.from_json(line)) is None:
            continue
        if len(found) == number:
            return found, True
        found.append(interval)
    return found, False


def _rows(intervals: Iterable[Interval], labels: Distinct, requests: Distinct) -> dict[str, dict[str, list[int]]]:
    """Columns of each row, by the time at which they begin."""
    rows: dict[str, dict[str, list[int]]] = {}
    for one in sorted(intervals, key=lambda interval: interval.begin):
        row = rows.setdefault(_row(one), {"begin": [], "length": [], "label": [], "step": [], "request": []})
        row["begin"].append(round(one.begin * 1e6))
        row["length"].append(round((one.end - one.begin) * 1e6))
        row["label"].append(labels.place((one.name, one.stage, one.component, one.block)))
        row["step"].append(-1 if one.step is None else one.step)
        row["request"].append(requests.place(one.request) if one.request else -1)
    return {name: rows[name] for name in _ROWS if name in rows}


def _row(interval: Interval) -> str:
    """What nests on a lane is told apart by its kind."""
    if interval.lane != "compute":
        return str(interval.lane)
    return interval.name if interval.name in _ROWS else "block"
