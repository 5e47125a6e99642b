"""How the ranks form teams, and what of a request each rank of one does: for run.json and --explain."""

from typing import Any

from runner.pipeline.pipeline import Pipeline
from runner.pipeline.separate_calls import separate_calls


def described(pipeline: Pipeline) -> dict[str, Any]:
    """For run.json."""
    team, tiles = pipeline.world.team, pipeline.tiles
    told: dict[str, Any] = {"teams": team.count, "guidance": team.guidance, "context": team.context}
    if team.why:
        told["chosen"] = team.why
    if tiles is not None and tiles.reasons:
        told["tiles"] = {name: reason or "shared out" for name, reason in tiles.reasons.items()}
    return told


def lines(pipeline: Pipeline) -> list[str]:
    """For people; none where each rank is a team of its own, and nobody asked."""
    team, tiles = pipeline.world.team, pipeline.tiles
    if team.size == 1 and not team.why:
        return []
    told = [f"teams: {team}" + (f", since {team.why}" if team.why else "")]
    if (why := _too_many(pipeline)) is not None:
        told.append(f"guidance: {why}")
    for name, reason in (tiles.reasons if tiles is not None else {}).items():
        told.append(f"tiles: {name}: {f'every rank decodes all: {reason}' if reason else 'shared out'}")
    return told


def _too_many(pipeline: Pipeline) -> str | None:
    """Why guidance ranks will have nothing of their own to do, as far as the pipeline's source tells beforehand."""
    team = pipeline.world.team
    widest = separate_calls(type(pipeline.stock), [component.name for component in pipeline.components])
    if team.guidance <= widest:
        return None
    calls = "one call a step, with all conditions in a batch" if widest == 1 else f"at most {widest} calls a step"
    return (
        f"{type(pipeline.stock).__name__} makes {calls}: {team.guidance - widest} of {team.guidance} guidance ranks "
        f"compute what others do too; mesh.guidance={widest} leaves them for other requests"
    )
