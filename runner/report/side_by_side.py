"""What became of the calls that do not depend on each other: for run.json, --explain, and one warning where ranks that
were to share them out had nothing to do."""

from typing import Any

from runner.pipeline.pipeline import Pipeline
from runner.rounds.round_figures import Figures


def rounds_of(pipeline: Pipeline) -> dict[str, Any]:
    """For run.json, by component."""
    return pipeline.rounds.figures.described() if pipeline.rounds is not None else {}


def explained(pipeline: Pipeline) -> list[str]:
    """For --explain: whose calls may be a round, before any was made."""
    if pipeline.rounds is None:
        return ["rounds: none, since one rank makes each request, and no weights move"]
    guidance = pipeline.world.team.guidance
    how = f"are shared out over {guidance} ranks" if guidance > 1 else "share a pass over the weights"
    alone = pipeline.rounds.why_alone()
    names = [name for name in pipeline.rounds.names if name not in alone]
    lines = [f"rounds: calls that do not depend on each other {how}: {', '.join(names) or 'of no component'}"]
    return lines + [f"rounds: every call of {name} is made by every rank: {reason}" for name, reason in alone.items()]


def wasted(pipeline: Pipeline) -> str | None:
    """A warning, where no call of a denoiser was shared out over the ranks that were to do so."""
    guidance = pipeline.world.team.guidance
    if pipeline.rounds is None or guidance == 1:
        return None
    denoisers = [one.name for one in pipeline.components if one.stage == "denoise"]
    seen = {name: of for name, of in pipeline.rounds.figures.components.items() if name in denoisers}
    if not seen or any(of.shared_out for of in seen.values()):
        return None
    why = "; ".join(f"{name}: {_why(of)}" for name, of in seen.items())
    return (
        f"mesh.guidance={guidance}: all {guidance} ranks of a team made every call, and {guidance - 1} of them for "
        f"nothing ({why}). With mesh.guidance=1 they make requests of their own; mesh.context={guidance} shares the "
        "tokens of a call"
    )


def _why(of: Figures) -> str:
    if of.serial:
        return ", ".join(of.serial)
    return "one call at a time, each of which needs the one before: no guidance, or both conditions in one batch"
