"""The groups of a mesh wait as long as the world's: the watch says who is lost, before any group gives up."""

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from runner.team import place_in_team, team_mesh
from sharding import build_mesh
from tests.ranks import TIMEOUT, World, on_ranks

LONG = timedelta(hours=3)  # longer than any default of torch's


def copies(world: World) -> DeviceMesh:
    return build_mesh(world.device.type, shard=1, replicate=world.size)


def teams(world: World) -> DeviceMesh:
    return team_mesh(world.device.type, place_in_team(world.rank, world.size, 1, world.size))


def timeout_of(group: dist.ProcessGroup, device: torch.device) -> timedelta:
    return group._get_backend(device).options._timeout


@pytest.mark.parametrize("make", [copies, teams])
@on_ranks(2)
def test_each_axis_waits_as_long_as_the_world(world: World, make: object) -> None:
    assert callable(make)
    backend = dist.group.WORLD._get_backend(world.device)
    own = [timeout_of(group, world.device) for group in make(world).get_all_groups()]
    assert max(own) > TIMEOUT, "torch's own is not cut short"
    backend._set_default_timeout(LONG)
    try:
        groups = make(world).get_all_groups()
        assert [timeout_of(group, world.device) for group in groups] == [LONG] * len(groups)
    finally:
        backend._set_default_timeout(TIMEOUT)
