"""Waves: who is alike, what is handed out when, and what happens to requests that come back."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from runner.job.waves import Waves, alike_key


@dataclass(frozen=True)
class Asked:
    number: int
    call: dict[str, Any] = field(default_factory=dict)
    lora: dict[str, float] = field(default_factory=dict)


def handed_out(waves: Waves[Asked]) -> list[list[int]]:
    numbers = []
    while wave := waves.next():
        numbers.append([request.number for request in wave])
    return numbers


def test_without_lockstep_the_order_is_the_requests_own() -> None:
    requests = [Asked(i, {"num_inference_steps": i}) for i in range(5)]
    assert handed_out(Waves(requests, 2, lockstep=False)) == [[0, 1], [2, 3], [4]]


def test_in_lockstep_only_alike_requests_share_a_wave() -> None:
    requests = [Asked(i, {"num_inference_steps": 2 + i % 2}) for i in range(7)]
    assert handed_out(Waves(requests, 3, lockstep=True)) == [[0, 2, 4], [6], [1, 3, 5]]


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
    requests = [Asked(i) for i in range(5)]
    waves = Waves(requests, 2, lockstep=True)
    wave = waves.next()
    waves.again([wave[1]])
    assert [r.number for r in waves.next()] == [1, 2]
    waves.again([requests[1], requests[2]], alone=True)
    assert handed_out(waves) == [[1], [2], [3, 4]]
