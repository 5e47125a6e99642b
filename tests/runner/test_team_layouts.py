"""Teams x shard x replicate over 64 and 512 ranks, on torch's fake backend: who is with whom, in how many groups."""

import time
from dataclasses import replace

import pytest
import torch.distributed as dist

import sharding
from runner.team import check_shard, place_in_team, team_mesh
from sharding import fake_world
from weights.agreement import ranks_of

LAYOUTS = {  # guidance, context, ranks that share a copy of weights
    "copies within a node, teams of two": (2, 1, 8),
    "a copy in each team": (2, 4, 8),
    "two copies in a team": (2, 8, 8),
    "one copy over all teams": (2, 2, None),
    "tokens over the ranks of a copy": (1, 8, 8),
    "whole": (2, 4, 1),
}


@pytest.mark.parametrize("size", [64, 512])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_groups_are_right_few_and_made_in_seconds(size: int, layout: str) -> None:
    guidance, context, shard = LAYOUTS[layout]
    shard, members = shard or size, guidance * context
    for rank in (0, members - 1, members, size // 2 + 3, size - 1):
        with fake_world(size, rank):
            began = time.perf_counter()
            team = place_in_team(rank, size, guidance, context)
            check_shard(size, shard, team)
            team = replace(team, mesh=team_mesh("cpu", team))
            mesh = sharding.build_mesh("cpu", shard=shard, replicate=size // shard)
            seconds = time.perf_counter() - began

            first = rank // shard * shard
            copy = ranks_of(mesh.get_group("shard") if mesh.ndim == 2 else mesh.get_group())
            assert copy == list(range(first, first + shard))
            if mesh.ndim == 2:
                assert ranks_of(mesh.get_group("replicate")) == list(range(rank % shard, size, shard))
            # Whole teams share a copy, or a team has several: so the larger of the two keeps in step.
            larger, smaller = sorted([set(copy), set(team.ranks)], key=len, reverse=True)
            assert larger >= smaller
            if guidance > 1:
                own = ranks_of(team.guidance_group)
                assert own == [r for r in team.ranks if r % context == team.context_index] and len(own) == guidance
            if context > 1:
                assert team.context_mesh is not None
                assert ranks_of(team.context_mesh.get_group("ulysses")) == [
                    r for r in team.ranks if (r - team.ranks[0]) // context == team.guidance_index
                ]
            groups = len(dist.distributed_c10d._world.pg_map)
            assert groups <= 1 + team.mesh.ndim + mesh.ndim, "of this rank: the world, and one for each axis"
            assert seconds < 20, "a fake world of so many ranks takes a fraction of a second on a quiet machine"
