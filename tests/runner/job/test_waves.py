"""Waves: who is alike, what is handed out when, and what happens to requests that come back."""

from dataclasses import replace
from typing import Any

import pytest

from runner.job.waves import Waves, alike_key
from runner.request import Request


def asked(number: int, call: dict[str, Any] | None = None, lora: dict[str, float] | None = None) -> Request:
    return Request("a cat", number, call or {}, lora or {}, number=number)


def in_groups(waves: Waves) -> list[list[list[int]]]:
    """For each wave the numbers of each team's requests; filler work negative, from -1 on."""
    return [
        [[-1 - task.request.number if task.is_filler else task.request.number for task in team] for team in wave]
        for wave in waves
    ]


def handed_out(waves: Waves) -> list[list[int | None]]:
    """The same where a team makes one at a time."""
    assert waves.together == 1
    return [[number for team in wave for number in team or [None]] for wave in in_groups(waves)]


def test_teams_that_share_no_weights_take_requests_in_their_own_order() -> None:
    requests = [asked(i, {"num_inference_steps": i}) for i in range(5)]
    assert handed_out(Waves(requests, [1, 1])) == [[0, 1], [2, 3], [4, None]]


def test_teams_in_step_make_alike_requests_and_fill_up_with_repetitions() -> None:
    requests = [asked(i, {"num_inference_steps": 2 + i % 2}) for i in range(7)]
    assert handed_out(Waves(requests, [3])) == [[0, 2, 4], [6, -7, -7], [1, 3, 5]]


def test_each_group_of_teams_takes_a_kind_of_its_own() -> None:
    """Two sharded copies: what one of them makes need not be like what the other makes."""
    requests = [asked(i, {"num_inference_steps": 2 + i % 2}) for i in range(6)]
    assert handed_out(Waves(requests, [2, 2])) == [[0, 2, 4, -5], [1, 3, 5, -6]]
    assert handed_out(Waves(requests[:2], [2, 2])) == [[0, -1, 1, -2]]
    assert handed_out(Waves(requests[:1], [2, 2])) == [[0, -1, None, None]]


def test_a_wave_has_one_set_of_adapters() -> None:
    requests = [asked(i, lora=lora) for i, lora in enumerate([{"ink": 1.0}, {}, {"ink": 1.0}, {"ink": 0.5}, {}])]
    expected = [[0, 2], [1, 4], [3, None]]
    assert handed_out(Waves(requests, [1, 1])) == expected
    assert handed_out(Waves(requests, [2])) == [[0, 2], [1, 4], [3, -4]]


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ({"guidance_scale": 3.0}, {"guidance_scale": 4.5}, True),
        ({"guidance_scale": 3.0}, {"guidance_scale": 1.0}, False),
        ({"true_cfg_scale": 0.0}, {"true_cfg_scale": 0.5}, False),
        ({"negative_prompt": "blurry"}, {"negative_prompt": "dark"}, True),
        ({"negative_prompt": "blurry"}, {"negative_prompt": ""}, False),
        ({"negative_prompt": "blurry"}, {}, False),
        ({"negative_prompt": ""}, {"negative_prompt": None}, False),
        ({"height": 64}, {"height": 32}, False),
        ({"sigmas": [1.0, 0.5]}, {"sigmas": [1.0]}, False),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
    ],
)
def test_alike_is_what_decides_number_and_shape_of_forwards(
    one: dict[str, Any], other: dict[str, Any], alike: bool
) -> None:
    assert (alike_key(one) == alike_key(other)) is alike


def test_a_request_that_comes_back_goes_first_and_alone_where_asked() -> None:
    requests = [asked(i) for i in range(5)]
    waves = Waves(requests, [2])
    waves.next()
    waves.again([requests[1]])
    assert [task.request.number for team in waves.next() for task in team] == [1, 2]
    waves.again([requests[1], requests[2]], alone=True)
    assert handed_out(waves) == [[1, -2], [2, -3], [3, 4]]


def test_who_is_alone_with_its_repetitions_knows_it() -> None:
    first, second = Waves([asked(i) for i in range(3)], [2])
    assert [task.is_alone for team in first for task in team] == [False, False]
    assert [(task.is_alone, task.is_filler) for team in second for task in team] == [(True, False), (False, True)]


def test_a_team_makes_several_together_and_the_waves_are_alike() -> None:
    requests = [asked(i, {"num_inference_steps": i}) for i in range(9)]
    assert in_groups(Waves(requests, [1], 8)) == [[[0, 1, 2, 3, 4]], [[5, 6, 7, 8]]]
    assert in_groups(Waves(requests, [1, 1], 4)) == [[[0, 1, 2], [3, 4, 5]], [[6, 7], [8]]]
    assert in_groups(Waves(requests[:2], [1, 1], 4)) == [[[0], [1]]]


def test_teams_in_step_make_as_many_together_each_alike_its_neighbours() -> None:
    requests = [asked(i, {"num_inference_steps": 2 + i % 2}) for i in range(9)]
    assert in_groups(Waves(requests, [2], 5)) == [[[0, 4, 8], [2, 6, -9]], [[1, 5], [3, 7]]]
    assert in_groups(Waves(requests, [2], 2)) == [[[0, 4], [2, 6]], [[8], [-9]], [[1, 5], [3, 7]]]
    assert in_groups(Waves(requests, [2, 2], 2)) == [[[0, 4], [2, 6], [8], [-9]], [[1], [3], [5], [7]]]


def test_how_many_are_made_together_may_change() -> None:
    waves = Waves([asked(i) for i in range(7)], [1])
    waves.next()
    waves.together = 3
    assert in_groups(waves) == [[[1, 2, 3]], [[4, 5, 6]]]


def test_who_was_tried_in_vain_is_made_alone() -> None:
    requests = [replace(asked(i), id=str(i)) for i in range(5)]
    assert in_groups(Waves(requests, [1], 4, tried=["3", "4"])) == [[[0, 1, 2]], [[3]], [[4]]]
