"""Intervals as a Chrome trace, which Perfetto and chrome://tracing show: a process for a rank, a row for a lane."""

from collections.abc import Iterator, Sequence
from typing import Any

from runner.trace.interval import Interval, Lane

ROWS = tuple(Lane)
MOST_ROWS = 100  # of a lane whose intervals lie side by side


def chrome_trace(ranks: dict[int, Sequence[Interval]]) -> dict[str, Any]:
    """In the order of time. Seconds become microseconds."""
    events = [event for rank, intervals in ranks.items() for event in _of_rank(rank, intervals)]
    named = [event for rank in ranks for event in _names(rank, {e["tid"] for e in events if e["pid"] == rank})]
    return {"displayTimeUnit": "ms", "traceEvents": [*named, *sorted(events, key=lambda e: (e["ts"], -e["dur"]))]}


def _of_rank(rank: int, intervals: Sequence[Interval]) -> Iterator[dict[str, Any]]:
    for number, lane in enumerate(ROWS):
        on_lane = sorted((one for one in intervals if one.lane is lane), key=lambda one: (one.begin, -one.end))
        ends: list[float] = []  # of each row: a viewer takes what overlaps on one for nested, or drops it
        for one in on_lane:
            row = 0
            if lane is not Lane.compute:
                row = next((i for i, end in enumerate(ends) if end <= one.begin), len(ends))
                ends[row : row + 1] = [one.end]
            yield _event(one, rank, number * MOST_ROWS + min(row, MOST_ROWS - 1))


def _event(one: Interval, rank: int, row: int) -> dict[str, Any]:
    said = {"stage": one.stage, "component": one.component, "block": one.block, "request": one.request}
    arguments: dict[str, Any] = {name: value for name, value in said.items() if value}
    arguments |= {} if one.step is None else {"step": one.step}
    arguments |= {"bytes": one.num_bytes} if one.num_bytes else {}
    return {
        "ph": "X",
        "name": title(one),
        "cat": one.name,
        "ts": round(one.begin * 1e6, 3),
        "dur": round(max(one.seconds, 0.0) * 1e6, 3),
        "pid": rank,
        "tid": row,
        "args": arguments,
    }


def title(one: Interval) -> str:
    """`denoise/transformer` for a component's call, the module for a block's; for all else what it is, and of what."""
    if one.name == "component":
        return f"{one.stage}/{one.component}"
    if one.name == "block":
        return one.block
    of = "/".join(part for part in (one.component, one.block) if part) or one.request
    return f"{one.name} {of}".strip()


def _names(rank: int, rows: set[int]) -> Iterator[dict[str, Any]]:
    yield {"ph": "M", "name": "process_name", "pid": rank, "tid": 0, "args": {"name": f"rank {rank}"}}
    yield {"ph": "M", "name": "process_sort_index", "pid": rank, "tid": 0, "args": {"sort_index": rank}}
    for row in sorted(rows):
        name = ROWS[row // MOST_ROWS].value
        yield {"ph": "M", "name": "thread_name", "pid": rank, "tid": row, "args": {"name": name}}
        yield {"ph": "M", "name": "thread_sort_index", "pid": rank, "tid": row, "args": {"sort_index": row}}
