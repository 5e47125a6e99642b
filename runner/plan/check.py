"""What a job takes of the machines that it has come to, and whether it fits: before any weight is loaded."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runner.components.directory import Directory
from runner.components.fits import free_on
from runner.config import JobConfig, RunConfig
from runner.errors import UserError
from runner.health.stderr import say
from runner.output.folder import folders_for
from runner.output.write import read_json
from runner.plan.auto import Choice, chosen, is_asked, settled
from runner.plan.best import shared_out
from runner.plan.calibrate import read_rates
from runner.plan.machine import GIB, Machine
from runner.plan.model import model_of
from runner.plan.planning import planned
from runner.plan.rehearsal import rehearse
from runner.plan.work import assumed
from runner.request import parse_part
from runner.team import Team
from runner.world import World
from weights.agreement import this_node
from weights.room import available_room


def settle_plan(
    config: RunConfig,
    directory: Directory,
    world: World,
    ask: Callable[[], tuple[Mapping[str, Any], Mapping[str, Any]]],
    requests: int = 1,
) -> tuple[RunConfig, dict[str, Any] | None]:
    """The configuration with a placement for each component that is to be placed by the plan (`rest: auto`), and the
    plan as run.json has it; None where nobody counts what a device has. Collective.

    Raises UserError, on all ranks, where the weights alone, with the buffers that they move through, are more than the
    memory that is free now; it names the nearest placement that fits. What calls hold beside weights is an estimate,
    and refuses nothing: only a choice reckons with it. `ask`: the arguments of the first of `requests`, and its prompt.
    """
    machine, is_open = _here(world), is_asked(config, directory.modules)
    if machine is None:
        if is_open:
            raise UserError(f"rest=auto: torch cannot tell what {world.device.type} has left; name a placement")
        return config, None
    one = _Ask(config, directory, machine, world.team, ask, requests)
    answer = world.from_rank_0(world.agreed(lambda: _answer(one, is_open) if world.rank == 0 else None))
    if world.rank == 0 and answer.choice is not None:
        say(str(answer.choice))
    return settled(config, answer.choice), answer.figures


@dataclass(frozen=True)
class _Ask:
    config: RunConfig
    directory: Directory
    machine: Machine
    team: Team
    first: Callable[[], tuple[Mapping[str, Any], Mapping[str, Any]]]
    requests: int


@dataclass(frozen=True)
class _Answer:
    """What rank 0 tells the others, so that all do the same whatever each of them has."""

    figures: dict[str, Any]
    choice: Choice | None


def _answer(one: _Ask, is_open: bool) -> _Answer:
    config, model, choice = one.config, model_of(one.directory, one.config), None
    bandwidths = config.execution.bandwidths
    rates = read_rates(Path(bandwidths) if bandwidths else None, {})
    workload = assumed(list(model.sizes), 1, "not asked")
    if is_open:
        workload = shared_out(model, rehearse(model, one.directory, *one.first()), one.team.guidance, one.team.context)
        choice = chosen(
            model,
            config,
            workload,
            _with_reserve(one.machine),
            rates,
            team=one.team,
            requests=one.requests,
            earlier=_earlier(config.job),
        )
        config = settled(config, choice)
    plan = planned(model, config, workload, one.machine, rates)
    if not plan.fits and not is_open:
        raise UserError(f"the weights do not fit: {'; '.join(plan.short)}: {plan.fix()}")
    return _Answer(plan.figures() | ({"choice": choice.to_json()} if choice else {}), choice)


def _with_reserve(machine: Machine) -> Machine:
    """What kernels and libraries will take of a device besides, which nobody knows."""
    return machine if machine.is_host else replace(machine, reserved=min(GIB, machine.device_memory // 16))


def _earlier(job: JobConfig) -> dict[str, Any]:
    """The choice of the run before in the output folder, if there was one."""
    folder = next(folders_for(Path(job.output), parse_part(job.part)))
    plan = read_json(folder.run_json).get("plan")
    choice = plan.get("choice") if isinstance(plan, dict) else None
    return choice if isinstance(choice, dict) else {}


def _here(world: World) -> Machine | None:
    """What is free, the least of all ranks and nodes; None where nodes have unlike numbers of ranks, or nobody counts
    what a device has. Collective."""
    is_host = world.device.type == "cpu"
    free = 0 if is_host else free_on(world.device)
    ranks = world.gather((this_node(), free, available_room().num_bytes))
    on_nodes = Counter(node for node, _, _ in ranks)
    devices = [free for _, free, _ in ranks if free is not None]
    if len(set(on_nodes.values())) != 1 or len(devices) < len(ranks):
        return None
    gpus = next(iter(on_nodes.values()))
    return Machine(gpus, len(on_nodes), min(devices), min(room for _, _, room in ranks), is_host=is_host)
