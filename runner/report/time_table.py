"""Where the time went, as a table for people."""

from collections.abc import Mapping, Sequence
from typing import Any

HEADS = ("stage", "component", "calls", "compute", "exposed wait", "hidden transfer", "exchange", "moved", "hidden")
REST = {
    "glue": "the pipelines' own code",
    "meet": "waiting for other ranks",
    "write": "writing outputs",
    "other": "all else: records between waves, files of the trace",
}


def time_table(ranks: Mapping[int, Mapping[str, Any]], *, by_part: bool = False) -> str:
    """`ranks`: what run.json says of each rank under `time`. `by_part`: warm-up and steady steps apart."""
    return "\n\n".join(_of_rank(rank, time, by_part) for rank, time in ranks.items())


def _of_rank(rank: int, time: Mapping[str, Any], by_part: bool) -> str:
    rows = [HEADS, *(_row(figures) for figures in _components(time["components"], by_part))]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADS))]
    lines = ["  ".join(_aligned(row, widths)).rstrip() for row in rows]
    lines += [_line(what, time[name], time["seconds"]) for name, what in REST.items()]
    if time["written_beside"]:
        lines.append(f"  {time['written_beside']:9.3f} s       writing outputs, meanwhile")
    steady = [one for one in time["steps"] if (one["stage"], one["part"]) == ("denoise", "steady")]
    each = f"; a steady step takes {steady[0]['seconds_per_step']:.4f} s" if steady else ""
    return "\n".join([f"rank {rank}: {time['seconds']:.3f} s{each}", *lines])


def _components(rows: Sequence[Mapping[str, Any]], by_part: bool) -> list[dict[str, Any]]:
    """With those of both parts added up, unless they are wanted apart."""
    found: dict[Any, dict[str, Any]] = {}
    for row in rows:
        name = f"{row['component']} {row['part']}" if by_part else row["component"]
        one = found.setdefault((row["stage"], name), {"stage": row["stage"], "component": name})
        for figure, value in row.items():
            if isinstance(value, int | float) and figure != "overlap_percent":
                one[figure] = one.get(figure, 0) + value
    return list(found.values())


def _row(one: Mapping[str, Any]) -> tuple[str, ...]:
    seconds = (f"{one[name]:.3f}" for name in ("compute", "exposed_wait", "hidden", "exchange"))
    overlap = f"{100 * one['hidden'] / one['transfer']:.0f} %" if one["transfer"] else "-"
    return (one["stage"], one["component"], str(one["calls"]), *seconds, f"{one['num_bytes'] / 1e6:.1f} MB", overlap)


def _aligned(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    cells = list(zip(row, widths, strict=True))
    return [cell.ljust(width) for cell, width in cells[:2]] + [cell.rjust(width) for cell, width in cells[2:]]


def _line(what: str, seconds: float, all_seconds: float) -> str:
    return f"  {seconds:9.3f} s {100 * seconds / all_seconds if all_seconds else 0:3.0f} %  {what}"
