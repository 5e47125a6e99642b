"""Whether a job's weights fit the machines that it has come to, asked before any of them is loaded."""

from collections import Counter

from runner.components.directory import Directory
from runner.components.fits import free_on
from runner.config import RunConfig
from runner.errors import UserError
from runner.plan.machine import Machine, Rates
from runner.plan.model import model_of
from runner.plan.planning import planned
from runner.plan.work import assumed
from runner.world import World
from weights.agreement import this_node
from weights.room import available_room

_LARGEST = 4  # times the stored bytes: eight bits that become 32


def check_fits(config: RunConfig, directory: Directory, world: World) -> None:
    """Raise UserError, on all ranks, where the weights alone, with the buffers that they move through, are more than
    the memory that is free now; it names the nearest placement that fits. Collective.

    What calls hold beside weights is an estimate, and refuses nothing: `scripts/plan.py` has it.
    """
    machine = _here(world)
    if machine is None or _has_ample_room(directory, machine):
        return
    problem = world.agreed(lambda: _problem(config, directory, machine) if world.rank == 0 else None)
    if (problem := world.from_rank_0(problem)) is not None:
        raise UserError(problem)


def _problem(config: RunConfig, directory: Directory, machine: Machine) -> str | None:
    model = model_of(directory, config)
    plan = planned(model, config, assumed(list(model.sizes), 1, "not asked"), machine, Rates())
    return None if plan.fits else f"the weights do not fit: {'; '.join(plan.short)}: {plan.fix()}"


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


def _has_ample_room(directory: Directory, machine: Machine) -> bool:
    """Whether all of the model, whole, fits many times over: then there is nothing to work out."""
    most = _LARGEST * sum(directory.sources[name].stored_bytes for name in directory.modules)
    on_device = machine.is_host or most <= machine.device_memory
    return on_device and (machine.gpus + 1) * most <= machine.host_memory
