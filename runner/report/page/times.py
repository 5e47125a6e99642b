"""Where each rank's seconds went, as run.json has them, in parts of the whole."""

from collections.abc import Mapping
from typing import Any

# What they come to is `seconds`. Those of components first, then those of the rank.
OF_COMPONENTS = ("compute", "exposed_wait", "exchange")
OF_A_RANK = ("glue", "meet", "write", "other")


def times(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each rank `seconds`, and of them in percent: what components and the rank itself took; `overlap`: how much of
    the transfer of weights was hidden behind work. Empty where run.json has no such figures."""
    ranks = run.get("ranks")
    found = [rank.get("time") for rank in ranks if isinstance(rank, dict)] if isinstance(ranks, list) else []
    return [_of_rank(time) for time in found if isinstance(time, dict) and time.get("seconds")]


def _of_rank(time: Mapping[str, Any]) -> dict[str, Any]:
    components = time.get("components", [])
    seconds = {name: sum(one.get(name, 0.0) for one in components) for name in (*OF_COMPONENTS, "transfer", "hidden")}
    seconds |= {name: time.get(name, 0.0) for name in OF_A_RANK}
    parts = {name: 100 * seconds[name] / time["seconds"] for name in (*OF_COMPONENTS, *OF_A_RANK)}
    overlap = 100 * seconds["hidden"] / seconds["transfer"] if seconds["transfer"] else None
    return {"seconds": time["seconds"], "parts": parts, "overlap": overlap}
