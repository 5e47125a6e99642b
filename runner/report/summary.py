"""The lines that a run ends with."""

from collections.abc import Sequence

from runner.config import RunConfig
from runner.job.job import Outcome
from runner.report.run_json import Ending
from runner.world import World


def summary(
    config: RunConfig, outcomes: Sequence[Outcome], world: World, seconds: dict[str, float], ending: Ending
) -> str:
    done = sum(outcome.line is not None for outcome in outcomes)
    made = [outcome for outcome in outcomes if not outcome.earlier]
    before = f", {len(outcomes) - len(made)} of them settled before" if len(made) < len(outcomes) else ""
    each = seconds["generate"] / max(1, len(made))
    lines = [
        f"{done} of {len(outcomes) + ending.left} made on {world.size} rank(s) in {seconds['generate']:.1f} s "
        f"({each:.2f} s each), loaded in {seconds['load']:.1f} s -> {config.job.output}{before}"
    ]
    for outcome in outcomes:
        if outcome.failure:
            where = "given up" if outcome.earlier else "failed"
            name = f"{str(outcome.request.prompt)[:60]!r} seed {outcome.request.seed}"
            lines.append(f"{where}: {name}: {str(outcome.reason).splitlines()[0]}")
    if ending.left:
        lines.append(f"stopped: {ending.stopped}; {ending.left} left, the same command goes on")
    return "\n".join(lines)
