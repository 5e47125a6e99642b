"""The world this process is one rank of, how its ranks agree, and the teams that they make requests in."""

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from runner.errors import JobFault, UserError
from runner.team import PATIENCE, Team, joined_team, place_in_team
from weights.agreement import Group, from_first, gather, on_all_ranks

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """A rank among `size` ranks, and the device it computes on.

    `control` is a gloo group for what the ranks tell each other: on the host, beside the traffic of weights. A world
    of one needs none. Each rank is a `team` of its own until they form larger ones.
    """

    rank: int
    size: int
    device: torch.device
    control: Group = None
    team: Team = field(default=None)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.team is None:
            object.__setattr__(self, "team", place_in_team(self.rank, self.size, 1, 1))

    def in_teams(self, guidance: int, context: int, why: str = "") -> "World":
        """The same ranks, in teams of guidance x context. Collective; raises UserError where they do not divide so."""
        if guidance * context > 1 and not has_collectives(self.device):
            raise UserError(
                f"mesh.guidance, mesh.context: torch has no collectives on {self.device.type}; leave them 1"
            )
        kind = self.device.type
        own = joined_team(self.rank, self.size, guidance, context, device_type=kind, control=self.control)
        return replace(self, team=replace(own, why=why))

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in rank order, on every rank. Collective."""
        return gather(value, self.control)

    def check_same(self, value: object, what: str) -> None:
        """Raise UserError on every rank where `value` is not the same on all of them. Collective."""
        values = self.gather(hashlib.sha256(repr(value).encode()).hexdigest())
        differing = [rank for rank, other in enumerate(values) if other != values[0]]
        if differing:
            raise UserError(f"{what} is not the same on all ranks: rank {differing[0]} differs from rank 0")

    def from_rank_0(self, value: T | None) -> T:
        """Rank 0's value, on every rank. Collective."""
        return from_first(value, self.control)

    def agreed(self, action: Callable[[], T]) -> T:
        """Run `action` on every rank; an error on any of them is raised on all, instead of a hang. Collective."""
        return on_all_ranks(action, self.control)


@dataclass(frozen=True)
class Place:
    """Which rank this process is, as its launcher says, and where rank 0's store is: (host, port)."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    store: tuple[str, int] | None = None


@contextmanager
def joined_world(timeout_seconds: float = 600.0) -> Iterator[World]:
    """The process group that the launcher describes in the environment; a plain `python` is a world of one.

    Raises UserError for a launch that cannot be: variables that are missing, more ranks than devices. Raises JobFault
    where not all ranks come within `timeout_seconds`.
    """
    place = place_in_world(os.environ)
    _export(place)
    device = _device_of(place)
    timeout = timedelta(seconds=timeout_seconds)
    try:
        _join(place, device, timeout)
        control = dist.new_group(backend="gloo", timeout=PATIENCE)
    except (dist.DistError, RuntimeError, OSError) as error:
        raise JobFault(f"not all of {place.size} ranks came together within {timeout_seconds:g} s: {error}") from error
    assert dist.get_world_size() == place.size and dist.get_rank() == place.rank
    try:
        yield World(place.rank, place.size, device, control)
    finally:
        dist.destroy_process_group()


def place_in_world(environment: Mapping[str, str]) -> Place:
    """Read torchrun's variables, or Slurm's where srun starts the ranks itself. Raises UserError for half of either,
    and for a launcher that says nothing torch understands: never N worlds of one."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    given = {name: environment[name] for name in names if environment.get(name)}
    if "WORLD_SIZE" in given or "RANK" in given:
        if missing := [name for name in names if name not in given]:
            raise UserError(
                f"{', '.join(given)} are set in the environment, but not {', '.join(missing)}: start with torchrun, "
                "which sets them all, or unset them for a single rank"
            )
        numbers = [_number(name, given[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")]
        if not 0 <= numbers[0] < numbers[1]:
            raise UserError(f"RANK={numbers[0]} is no rank of WORLD_SIZE={numbers[1]}")
        return Place(numbers[0], numbers[1], numbers[2], (given["MASTER_ADDR"], numbers[3]))
    if "SLURM_STEP_ID" in environment and environment.get("SLURM_NTASKS", "1") != "1":
        return _place_in_slurm_step(environment)
    for launcher, name in (("mpirun", "OMPI_COMM_WORLD_SIZE"), ("an MPI launcher", "PMI_SIZE")):
        if environment.get(name, "1") != "1":
            raise UserError(
                f"started {environment[name]} times by {launcher} ({name}), which torch does not understand: start "
                "with torchrun, or with srun"
            )
    return Place()


def _place_in_slurm_step(environment: Mapping[str, str]) -> Place:
    """srun started a process for each rank."""
    names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_JOB_ID")
    if missing := [name for name in (*names, "SLURM_STEP_NODELIST") if name not in environment]:
        raise UserError(f"srun started this rank, but {', '.join(missing)} is not set; start with torchrun")
    rank, size, local_rank, job = (_number(name, environment[name]) for name in names)
    # The ports below the ephemeral ones; a job of its own has one of its own.
    return Place(rank, size, local_rank, (first_host(environment["SLURM_STEP_NODELIST"]), 20000 + job % 10000))


def first_host(node_list: str) -> str:
    """The first of Slurm's list of nodes: `n[03-07,9],m1` begins with n03."""
    match = re.match(r"([^,\[]+)(?:\[([^\],-]+)[^\]]*\])?([^,\[]*)", node_list)
    if match is None:
        raise UserError(f"SLURM_STEP_NODELIST is {node_list!r}, which names no node")
    return match[1] + (match[2] or "") + match[3]


def _export(place: Place) -> None:
    """As torchrun sets it, for the libraries and for the links between ranks."""
    if place.store is not None:
        own = {"RANK": place.rank, "WORLD_SIZE": place.size, "LOCAL_RANK": place.local_rank}
        for name, value in {**own, "MASTER_ADDR": place.store[0], "MASTER_PORT": place.store[1]}.items():
            os.environ.setdefault(name, str(value))


def _number(name: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise UserError(f"{name}={text!r} in the environment is no number")
    return int(text)


def _device_of(place: Place) -> torch.device:
    """The rank's own accelerator, made the current one before any group is; the CPU where there is none."""
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None or not torch.accelerator.is_available():
        return torch.device("cpu")
    count = torch.accelerator.device_count()
    if place.local_rank >= count:
        raise UserError(
            f"rank {place.rank} is number {place.local_rank + 1} on its node, which has {count} {accelerator.type} "
            f"device(s): start {count} rank(s) a node (--nproc-per-node {count})"
        )
    torch.accelerator.set_device_index(place.local_rank)
    return torch.device(accelerator.type, place.local_rank)


def _join(place: Place, device: torch.device, timeout: timedelta) -> None:
    """A world of one makes a group too: one rank shards as well."""
    if place.store is None:
        store: dist.Store = dist.HashStore()
    else:
        host, port = place.store
        agent_has_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        is_master = place.rank == 0 and not agent_has_store
        store = dist.TCPStore(host, port, place.size, is_master, timeout, wait_for_workers=False, multi_tenant=True)
    on_device = device.type != "cpu" and has_collectives(device)
    # A device's own watchdog takes the process down at the group's timeout; ours has to speak first.
    timeout = 3 * timeout if on_device else timeout
    dist.init_process_group(
        f"cpu:gloo,{device.type}:{_backend(device)}" if on_device else "gloo",
        store=dist.PrefixStore("dit-runner", store),
        rank=place.rank,
        world_size=place.size,
        timeout=timeout,
        device_id=device if on_device and _has_gloo(device) else None,
    )


def _has_gloo(device: torch.device) -> bool:
    """Whether a gloo group counts this device as its own. A device that is bound to the default group must have a
    backend in every later group, so binding any other (xpu, npu) would leave none of gloo alone."""
    return device.type in dist.Backend.backend_capability[dist.Backend.GLOO]


def has_collectives(device: torch.device) -> bool:
    """Whether torch can move tensors of this device between ranks. gloo, which it falls back to, moves the host's."""
    return device.type == "cpu" or _backend(device) not in (None, "gloo")


def _backend(device: torch.device) -> str | None:
    return dist.Backend.default_device_backend_map.get(device.type)
