"""The lines that a run ends with."""

from collections.abc import Mapping, Sequence
from typing import Any

from runner.config import RunConfig
from runner.report.run_json import Ending
from runner.world import World


def summary(config: RunConfig, world: World, ending: Ending, ranks: Sequence[Mapping[str, Any]]) -> str:
    made_now = [result for result in ending.settled if not result.earlier]
    earlier = len(ending.settled) - len(made_now)
    before = f", {earlier} of them settled before" if earlier else ""
    each = ending.seconds["generate"] / max(1, len(made_now))
    lines = [
        f"{len(ending.made)} of {len(ending.settled) + ending.left} made on {world.size} rank(s) in "
        f"{ending.seconds['generate']:.1f} s ({each:.2f} s each), loaded in {ending.seconds['load']:.1f} s -> "
        f"{config.job.output}{before}"
    ]
    logs = [rank.get("call_log", {}) for rank in ranks]
    replayed, spared, left = (
        sum(log.get(name, 0) for log in logs) for name in ("calls_replayed", "seconds_replayed", "calls_left")
    )
    if replayed:
        lines.append(f"went on inside: {replayed} calls replayed that had taken {spared:.1f} s")
    if ending.left and left:
        lines.append(f"stopped inside: {left} calls are kept in {config.job.output}/calls")
    for result in ending.failed:
        what = "given up" if result.earlier else "failed"
        name = f"{result.request.title[:60]!r} seed {result.request.seed}"
        lines.append(f"{what}: {name}: {result.failure.reason.splitlines()[0]}")
    if ending.left:
        lines.append(f"stopped: {ending.stopped}; {ending.left} left, the same command goes on")
    return "\n".join(lines)
