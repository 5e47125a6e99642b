"""--explain: how each component is placed, and in which mode its calls run, and why."""

from runner.calls.moving import moving_blocks, why_whole
from runner.components.compiled import is_compiled
from runner.components.resolver import by_stage
from runner.pipeline.pipeline import Pipeline
from runner.report import teams
from runner.report.side_by_side import explained


def table(pipeline: Pipeline) -> str:
    """Stage, component, placement, mode and reason of every component, in the order in which they work."""
    rows = [("stage", "component", "placement", "mode", "reason")]
    for stage, decisions in by_stage(pipeline.components, pipeline.decisions).items():
        placements = {component.name: str(component.placement) for component in pipeline.components}
        rows += [(stage, name, placements[name], d.mode.value, d.reason) for name, d in decisions.items()]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = ["  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[4]]) for row in rows]
    loadings = [f"{name}: loaded {loading.how}" for name, loading in pipeline.loadings.items()]
    names = [component.name for component in pipeline.components if is_compiled(component.module)]
    compiled = [f"compiled: the blocks of {', '.join(names)}"] if names else []
    return "\n".join(
        [*lines, "", *loadings, *compiled, *_groups(pipeline), *teams.lines(pipeline), *explained(pipeline)]
    )


def _groups(pipeline: Pipeline) -> list[str]:
    """What requests that are made together share."""
    if (why := pipeline.why_alone) is not None:
        return [f"group: requests are made one by one, since {why}"]
    shared = [component.name for component in pipeline.components if moving_blocks(component)]
    if not shared:
        return ["group: requests gain nothing by being made together, since no block moves"]
    whole = [f"{c.name} ({reason})" for c in pipeline.components if (reason := why_whole(c)) is not None]
    return [f"group: blocks come up once for all: {', '.join(shared)}; called as a whole: {'; '.join(whole) or 'none'}"]
