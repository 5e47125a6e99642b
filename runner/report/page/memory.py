"""Memory over the time of the last run, as curves that a page can draw."""

from collections.abc import Mapping, Sequence
from typing import Any

from runner.report.told import Told

_POINTS = 500
_CURVES = 32  # with more ranks, the fullest and the emptiest
_MIB = 2**20


def memory(told: Told) -> dict[str, Any]:
    """`times` in seconds of the epoch; for each kind of memory a curve, in MiB, for each name; and what was planned."""
    lines = [line for line in told.samples if line.get("run") == told.run.get("run") and _is_sound(line)]
    every = max(1, -(-len(lines) // _POINTS))
    groups = [lines[start : start + every] for start in range(0, len(lines), every)]
    kinds = {"host": "host_bytes", "device": "device_bytes"}
    curves = {kind: _curves([_most(group, field) for group in groups]) for kind, field in kinds.items()}
    return {"times": [group[-1]["time"] for group in groups], **curves, "planned": _planned(told.run.get("plan"))}


def _planned(plan: Any) -> dict[str, dict[str, Any]]:
    """Of a rank at the most, by kind, in MiB; nothing where run.json has no plan."""
    if not isinstance(plan, Mapping):
        return {}
    what = "weights as planned" if plan.get("counts") == "weights" else "as planned"
    names = {"host": f"{what}, beside Python", "device": what}
    sizes = {kind: plan.get(f"{kind}_bytes") for kind in names}
    return {
        kind: {"name": names[kind], "value": size / _MIB}
        for kind, size in sizes.items()
        if isinstance(size, int) and size > 0
    }


def _most(lines: Sequence[Mapping[str, Any]], field: str) -> list[int]:
    """What each rank had at the most in these lines."""
    return [max(values) for values in zip(*(line[field] for line in lines), strict=False)]


def _curves(points: Sequence[Sequence[int]]) -> dict[str, list[int]]:
    num_ranks = min(map(len, points), default=0)
    if num_ranks > _CURVES:
        return {
            "the fullest": [round(max(point) / _MIB) for point in points],
            "the emptiest": [round(min(point) / _MIB) for point in points],
        }
    return {f"rank {rank}": [round(point[rank] / _MIB) for point in points] for rank in range(num_ranks)}


def _is_sound(line: Mapping[str, Any]) -> bool:
    values = [line.get(name) for name in ("host_bytes", "device_bytes")]
    are_lists = all(isinstance(value, list) and all(isinstance(one, int) for one in value) for value in values)
    return are_lists and isinstance(line.get("time"), int | float)
