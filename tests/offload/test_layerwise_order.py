"""What will run next is foretold from what ran."""

import random
from collections.abc import Sequence

import pytest

from offload.order import Order

DECLARED = "abcdef"


def wrong_guesses(order: Order, stage: Sequence[str]) -> int:
    wrong = 0
    for block in stage:
        wrong += order.upcoming()[:1] != [block]
        order.ran(block)
    return wrong


def test_the_declared_order_comes_first_and_then_round_again() -> None:
    order = Order(DECLARED)
    assert order.upcoming() == list(DECLARED)
    order.ran("a")
    assert order.upcoming() == list("bcdefa")
    assert wrong_guesses(order, "bcdef" + 3 * DECLARED) == 0


@pytest.mark.parametrize(
    "rounds",
    [
        "abcdef",
        "fedcba",
        "adbecf",
        "abde",
        "aabbccddeeff",
        "aaabcdef",
        "abcabcdef",
        "abcdefabdef",
        "f",
        "ffe",
        "ababcd",
    ],
)
def test_a_round_seen_twice_is_known(rounds: str) -> None:
    order = Order(DECLARED)
    wrong_guesses(order, rounds * 2)
    assert wrong_guesses(order, rounds * 100) <= (0 if len(set(rounds)) == len(rounds) else 1)
    assert wrong_guesses(order, rounds * 100) == 0


@pytest.mark.parametrize("num_rounds", [1, 2, 3, 28])
@pytest.mark.parametrize("rounds", ["abcdef", "fedcba", "abde", "de"])
def test_a_stage_is_expected_to_be_like_the_last(rounds: str, num_rounds: int) -> None:
    order = Order(DECLARED)
    for stage in range(4):
        wrong = wrong_guesses(order, rounds * num_rounds)
        if stage >= 1:
            assert wrong == 0
            assert order.upcoming() == []  # nothing is fetched for a next round that will not come
        order.stage_ended()
        order.stage_ended()
        assert order.upcoming() == list(rounds)


def test_a_longer_stage_goes_on() -> None:
    order = Order(DECLARED)
    wrong_guesses(order, DECLARED * 2)
    order.stage_ended()
    assert wrong_guesses(order, DECLARED * 5) == 1  # at the end that was expected


def test_any_order_is_survived_and_the_past_does_not_grow() -> None:
    order, chance = Order(DECLARED), random.Random(0)
    for _ in range(2000):
        order.ran(chance.choice(DECLARED))
        upcoming = order.upcoming()
        assert len(set(upcoming)) == len(upcoming) and set(upcoming) <= set(DECLARED)
        if chance.random() < 0.02:
            order.stage_ended()
        assert len(order._past) <= 8 * len(DECLARED)


def test_after_disorder_the_old_order_is_found_again() -> None:
    order = Order(DECLARED)
    wrong_guesses(order, DECLARED * 3)
    wrong_guesses(order, "dbf")
    assert wrong_guesses(order, DECLARED * 20) <= 5
    assert wrong_guesses(order, DECLARED * 100) == 0
