"""How the ranks of a job form teams: as the settings say, or (`auto`) as is quickest for as many requests."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from runner.components.context_fit import context_that_fits
from runner.components.directory import Directory
from runner.config import AUTO, JobConfig, RunConfig, Share
from runner.errors import UserError
from runner.health.stderr import say
from runner.job.prompts import Prompt
from runner.output.folder import folders_for
from runner.output.recipe import read_recipe
from runner.pipeline.separate_calls import asks_for_guidance, separate_calls
from runner.request import parse_part
from runner.team import choose_team
from runner.world import World, has_collectives
from weights.agreement import on_first_rank


def in_teams(
    config: RunConfig, world: World, directory: Directory, prompts: Sequence[Prompt]
) -> tuple[RunConfig, World]:
    """The settings with numbers for what was left to choose, and the ranks in teams. Collective.

    Raises UserError where the ranks do not divide so, or not as the job's folder was begun with.
    """
    mesh, why = config.mesh, ""
    if AUTO in (mesh.guidance, mesh.context):
        guidance, context, why = on_first_rank(lambda: _chosen(config, world, directory, prompts), world.control)
        config = replace(config, mesh=replace(mesh, guidance=guidance, context=context))
        if world.rank == 0:
            asked = [f"mesh.{name}=auto" for name in ("guidance", "context") if getattr(mesh, name) == AUTO]
            say(f"{', '.join(asked)}: guidance {guidance} x context {context}, since {why}")
    return config, world.in_teams(int(config.mesh.guidance), int(config.mesh.context), why)


def _chosen(config: RunConfig, world: World, directory: Directory, prompts: Sequence[Prompt]) -> tuple[int, int, str]:
    """guidance, context, and why."""
    job, size = config.job, world.size if has_collectives(world.device) else 1
    kept = kept_context(job) if config.mesh.context == AUTO else None
    guidance = _numbers_of_guidance(config, directory, prompts)
    context = [kept] if kept is not None else _numbers_of_context(config, directory, size)
    if kept is not None and size % (min(guidance) * kept):
        raise UserError(
            f"job.output: {job.output} was begun with mesh.context={kept}, which decides last bits and which auto "
            f"keeps; {size} rank(s) do not divide into such teams: start as many as do, or name another folder"
        )
    num_requests = -(-len(prompts) * job.images_per_prompt // parse_part(job.part).size)
    chosen = choose_team(size, num_requests, guidance=guidance, context=context, shard=_shard(config, size))
    return chosen if kept is None else (*chosen[:2], f"{chosen[2]}; the folder was begun with mesh.context={kept}")


def _numbers_of_guidance(config: RunConfig, directory: Directory, prompts: Sequence[Prompt]) -> Sequence[int]:
    """Up to as many as a step has calls apart, where any request asks for guidance."""
    if config.mesh.guidance != AUTO:
        return [int(config.mesh.guidance)]
    is_guided = any(asks_for_guidance(directory.pipeline, {**config.job.call, **one.call}) for one in prompts)
    return range(1, 1 + (separate_calls(directory.pipeline, directory.modules) if is_guided else 1))


def _numbers_of_context(config: RunConfig, directory: Directory, size: int) -> Sequence[int]:
    if config.mesh.context != AUTO:
        return [int(config.mesh.context)]
    return context_that_fits(directory, size, compiled=bool(config.execution.compile))


def kept_context(job: JobConfig) -> int | None:
    """How many ranks shared out tokens when the job's folder was begun; None where it is not. A number is part of the
    recipe: another one would be another job."""
    folder = next(folders_for(Path(job.output), parse_part(job.part)))
    recipe = read_recipe(folder)
    if recipe is None:
        return None
    kept = recipe.get("mesh.context", 1)
    return kept if isinstance(kept, int) and kept >= 1 else 1  # of a recipe that is no longer ours: refused later


def _shard(config: RunConfig, size: int) -> int | None:
    """How many ranks are to share a copy of weights; None where none does, or what is asked for cannot be."""
    if all(placement.share is not Share.shard for placement in config.placement.values()):
        return None
    if config.mesh.shard is not None:
        return config.mesh.shard
    return max(size // (config.mesh.replicate or 1), 1)
