"""Teams: which ranks form one, in what order, and which divisions of the ranks are refused."""

from dataclasses import replace
from typing import Any

import diffusers
import pytest

from runner.errors import UserError
from runner.pipeline.separate_calls import asks_for_guidance, separate_calls
from runner.team import Team, check_division, check_shard, choose_team, place_in_team, team_mesh
from runner.world import World
from sharding import fake_world
from weights.agreement import ranks_of


def test_each_rank_is_a_team_of_its_own_until_asked() -> None:
    world = World(3, 8, "cpu")  # type: ignore[arg-type]
    assert world.team == Team(3, 8, (3,)) and world.team.is_first
    assert (world.team.index, world.team.count, world.team.size) == (3, 8, 1)
    assert world.team.guidance_group is world.team.context_mesh is world.team.control is None


@pytest.mark.parametrize("size", [64, 512])
@pytest.mark.parametrize(("guidance", "context"), [(2, 1), (1, 4), (2, 4), (4, 8)])
def test_consecutive_ranks_form_a_team_with_context_innermost(size: int, guidance: int, context: int) -> None:
    members = guidance * context
    for rank in (0, 1, members - 1, members, size // 2 + 3, size - 1):
        with fake_world(size, rank):
            team = place_in_team(rank, size, guidance, context)
            team = replace(team, mesh=team_mesh("cpu", team))
            assert team.ranks == tuple(range(team.index * members, (team.index + 1) * members)) and rank in team.ranks
            assert rank == team.index * members + team.guidance_index * context + team.context_index
            assert (team.count, team.is_first) == (size // members, rank % members == 0)
            if guidance > 1:
                assert ranks_of(team.guidance_group) == list(team.ranks[team.context_index :: context])
            else:
                assert team.guidance_group is None
            if context > 1:
                first = team.ranks[0] + team.guidance_index * context
                assert team.context_mesh is not None and team.context_mesh.mesh_dim_names == ("ring", "ulysses")
                assert team.context_mesh.mesh.tolist() == [list(range(first, first + context))]
            else:
                assert team.context_mesh is None


@pytest.mark.parametrize(
    ("size", "guidance", "context", "fits"),
    [
        (4, 3, 1, "mesh.guidance=2 mesh.context=1 does"),
        (1, 2, 1, "mesh.guidance=1 mesh.context=1 does"),
        (8, 3, 2, "mesh.guidance=2 mesh.context=2 does"),
        (8, 2, 3, "mesh.guidance=2 mesh.context=2 does"),
        (6, 2, 2, "mesh.guidance=1 mesh.context=2 does"),
    ],
)
def test_teams_that_do_not_divide_the_ranks_are_refused_with_those_that_do(
    size: int, guidance: int, context: int, fits: str
) -> None:
    with pytest.raises(UserError, match=f"teams of {guidance * context} ranks, which {size} .*{fits}"):
        check_division(size, guidance, context)


@pytest.mark.parametrize(
    ("shard", "fits"), [(1, None), (2, None), (3, "1 or 2 or 4 or 12"), (4, None), (6, "1 or 2 or 4 or 12"), (12, None)]
)
def test_a_sharded_copy_is_whole_teams_or_lies_within_one(shard: int, fits: str | None) -> None:
    team = place_in_team(0, 12, 2, 2)
    if fits is None:
        check_shard(12, shard, team)
        return
    with pytest.raises(UserError, match=f"mesh.shard={shard} cuts through teams of 4 ranks .*mesh.shard={fits} does"):
        check_shard(12, shard, team)


@pytest.mark.parametrize(
    ("size", "requests", "guidance", "context", "chosen"),
    [
        (8, 100, [1, 2], [1], (1, 1)),  # each rank has requests of its own
        (8, 100, [1, 2], [1, 2, 4], (1, 1)),
        (8, 4, [1, 2], [1, 2, 4], (2, 1)),
        (8, 4, [1], [1, 2, 4], (1, 2)),  # a batch of both conditions
        (8, 3, [1, 2], [1, 2, 4], (2, 1)),
        (8, 2, [1, 2], [1, 2, 4], (2, 2)),
        (8, 1, [1, 2], [1], (2, 1)),
        (8, 1, [1, 2], [1, 2, 4], (2, 4)),
        (8, 1, [1, 2, 3], [1], (2, 1)),  # three do not divide eight
        (6, 2, [1, 2, 3], [1], (3, 1)),
        (8, 1, [1, 2], [4], (2, 4)),  # the one is given, the other is chosen
        (8, 100, [1, 2], [4], (1, 4)),
        (8, 1, [2], [1, 2, 4], (2, 4)),
        (8, 100, [2], [1, 2, 4], (2, 1)),
        (8, 1, [1], [1], (1, 1)),
        (1, 1, [1, 2], [1], (1, 1)),
        (8, 0, [1, 2], [1], (2, 1)),
    ],
)
def test_ranks_that_requests_leave_idle_share_out_calls_and_then_tokens(
    size: int, requests: int, guidance: list[int], context: list[int], chosen: tuple[int, int]
) -> None:
    *numbers, why = choose_team(size, requests, guidance=guidance, context=context)
    assert tuple(numbers) == chosen and why
    check_division(size, *numbers)


def test_what_is_chosen_fits_the_ranks_that_share_a_copy_of_weights() -> None:
    assert choose_team(12, 1, guidance=[1, 2, 3], context=[1, 2, 4], shard=3)[:2] == (3, 4)
    assert choose_team(12, 1, guidance=[1, 2], context=[1, 4], shard=3)[:2] == (1, 1)
    assert choose_team(12, 1, guidance=[1, 2], context=[1, 4], shard=6)[:2] == (2, 1)


@pytest.mark.parametrize(
    ("cls", "calls"),
    [
        (diffusers.QwenImagePipeline, 2),
        (diffusers.WanPipeline, 2),  # by a local name
        (diffusers.LTX2Pipeline, 3),
        (diffusers.HunyuanVideo15Pipeline, 2),  # by a guider
        (diffusers.SanaPipeline, 1),
        (diffusers.PixArtSigmaPipeline, 1),
    ],
)
def test_separate_calls_are_seen_in_the_source(cls: Any, calls: int) -> None:
    assert min(separate_calls(cls, ["transformer", "transformer_2", "vae"]), 3) == calls


@pytest.mark.parametrize(
    ("cls", "call", "asks"),
    [
        (diffusers.FluxPipeline, {}, False),  # a distilled model
        (diffusers.FluxPipeline, {"guidance_scale": 3.5}, False),
        (diffusers.FluxPipeline, {"true_cfg_scale": 3.0}, False),
        (diffusers.FluxPipeline, {"true_cfg_scale": 3.0, "negative_prompt": ""}, True),
        (diffusers.QwenImagePipeline, {"negative_prompt": " "}, True),  # 4 if nobody says another
        (diffusers.WanPipeline, {}, True),
        (diffusers.WanPipeline, {"guidance_scale": 1.0}, False),
    ],
)
def test_a_request_that_is_not_guided_has_no_separate_calls(cls: Any, call: dict[str, Any], asks: bool) -> None:
    assert asks_for_guidance(cls, call) is asks
