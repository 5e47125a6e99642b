"""The ranks that make one request together, and the groups through which they do."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

import sharding
from runner.errors import UserError
from weights.agreement import Group, group_of

# Ranks wait for others that make a longer request. Whether one of them is lost or stuck, the watch knows.
PATIENCE = timedelta(days=30)


@dataclass(frozen=True)
class Team:
    """One of `count` teams that are the world, each of `guidance` x `context` consecutive `ranks`.

    Rank `place` of a team has the guidance index `place // context` and the context index `place % context`: ranks of
    one context group exchange something in every block, and so are nearest to each other. `control` is for messages
    between the ranks (gloo, on the host); for tensors are `mesh`, with the axes team, guidance, ring and ulysses, and
    `group`, of all ranks of this team in their order. A team of one rank has none of them.
    """

    index: int
    count: int
    ranks: Sequence[int]
    place: int = 0
    guidance: int = 1
    context: int = 1
    control: Group = None
    mesh: DeviceMesh | None = None
    group: Group = None
    why: str = ""  # there are so many, where nobody said how many

    @property
    def size(self) -> int:
        return len(self.ranks)

    @property
    def is_first(self) -> bool:
        """Whether this rank is the one of its team that writes files and records."""
        return self.place == 0

    @property
    def guidance_index(self) -> int:
        return self.place // self.context

    @property
    def context_index(self) -> int:
        return self.place % self.context

    @property
    def guidance_group(self) -> Group:
        """The ranks of this team with the same context index, in the order of their guidance index; None for one."""
        return self.mesh.get_group("guidance") if self.mesh is not None and self.guidance > 1 else None

    @property
    def context_mesh(self) -> DeviceMesh | None:
        """The ranks of this team with the same guidance index: the axes ring (of one) and ulysses; None for one."""
        return self.mesh["ring", "ulysses"] if self.mesh is not None and self.context > 1 else None

    def __str__(self) -> str:
        return f"{self.count} team(s) of {self.size} rank(s): guidance {self.guidance} x context {self.context}"


def place_in_team(rank: int, size: int, guidance: int, context: int) -> Team:
    """Where this rank stands, without the groups. Raises UserError where guidance x context does not divide the ranks,
    and names what does."""
    check_division(size, guidance, context)
    members = guidance * context
    index = rank // members
    ranks = tuple(range(index * members, (index + 1) * members))
    return Team(index, size // members, ranks, rank % members, guidance, context)


def team_mesh(device_type: str, team: Team) -> DeviceMesh:
    """All ranks by their team and their places in it. Collective."""
    axes = {"team": team.count, "guidance": team.guidance, "ring": 1, "ulysses": team.context}
    return sharding.mesh_of(device_type, axes)


def joined_team(rank: int, size: int, guidance: int, context: int, *, device_type: str, control: Group) -> Team:
    """This rank's team with its groups; `control` is that of the world. Collective: all ranks make all groups."""
    team = place_in_team(rank, size, guidance, context)
    if team.size == 1:
        return team
    teams = [range(first, first + team.size) for first in range(0, size, team.size)]
    among = control if team.count == 1 else group_of(teams, PATIENCE)
    mesh = team_mesh(device_type, team)
    if guidance > 1 and context > 1:
        group, _ = dist.new_subgroups_by_enumeration([list(ranks) for ranks in teams], PATIENCE)
    else:
        group = mesh.get_group("guidance" if guidance > 1 else "ulysses")
    return replace(team, control=among, mesh=mesh, group=group)


def choose_team(
    size: int, num_requests: int, *, guidance: Sequence[int], context: Sequence[int], shard: int | None = None
) -> tuple[int, int, str]:
    """guidance x context for the quickest job, of the numbers that may be, and why. `shard`: the ranks that share a
    copy of weights, if any do.

    Requests of their own come first: they need no exchange. Ranks that would have none share out calls, which is
    exchanged once a step; what is then left shares out tokens, which is exchanged in every block.
    """
    least = min(guidance), min(context)
    teams = max(size // (least[0] * least[1]), 1)
    ranks = size // max(min(num_requests, teams), 1)  # for each request that is made at a time
    fitting = [
        (g, c)
        for g in guidance
        for c in context
        if g * c <= ranks and size % (g * c) == 0 and (shard is None or divides(shard, g * c))
    ]
    chosen = max(fitting, default=least)
    if ranks == least[0] * least[1]:
        return *chosen, f"{num_requests} request(s) keep {teams} team(s) busy"
    calls = f"up to {max(guidance)} separate calls" if max(guidance) > 1 else "one call"
    tokens = f", whose tokens up to {max(context)} ranks share out" if max(context) > 1 else ""
    return *chosen, f"{num_requests} request(s) for {size} rank(s), and {calls} a step{tokens}"


def check_division(size: int, guidance: int, context: int) -> None:
    """Raises UserError where teams of guidance x context ranks are not the world."""
    if size % (guidance * context) == 0:
        return
    fits = [c for c in range(1, context + 1) if size % c == 0]
    kept = context if context in fits else fits[-1]
    less = max(g for g in range(1, guidance + 1) if size % (g * kept) == 0)
    raise UserError(
        f"mesh.guidance={guidance} x mesh.context={context} makes teams of {guidance * context} ranks, which {size} "
        f"rank(s) do not divide into (guidance x context x teams = ranks); "
        f"mesh.guidance={less} mesh.context={kept} does"
    )


def check_shard(size: int, shard: int, team: Team) -> None:
    """Raises UserError where ranks that share one copy of sharded weights are neither whole teams nor within one."""
    if divides(shard, team.size):
        return
    fitting = [str(number) for number in range(1, size + 1) if size % number == 0 and divides(number, team.size)]
    raise UserError(
        f"mesh.shard={shard} cuts through teams of {team.size} ranks (mesh.guidance={team.guidance} x mesh.context="
        f"{team.context}): the ranks that share a copy must be whole teams, or lie within one; mesh.shard="
        f"{' or '.join(fitting)} does"
    )


def divides(shard: int, members: int) -> bool:
    """Whether ranks that share a copy are whole teams, or lie within one."""
    return shard % members == 0 or members % shard == 0
