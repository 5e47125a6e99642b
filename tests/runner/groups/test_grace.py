"""Asked to stop, the requests of a group share the time that is left."""

from collections.abc import Sequence

import pytest

from runner.calls.turns import Turn
from runner.groups.grace import Grace, Pace


class Nobody:
    """Serves no turn: these tests only look at them."""

    def at_call(self, turn: Turn, stage: str, component: str, where: str) -> None: ...

    def after_call(self, turn: Turn) -> None: ...


def test_a_step_takes_what_the_last_ones_took_on_the_turns_own_clock() -> None:
    pace = Pace()
    assert pace.seconds_left == 0.0, "nothing is known"
    for done, now in ((0, 0.0), (0, 4.0), (1, 9.0)):  # two calls a step
        pace.note(done, 10, now)
    assert pace.seconds_left == 9 * 9.0
    for done, now in ((1, 9.5), (2, 11.0), (3, 13.0)):  # the first one had warmed up
        pace.note(done, 10, now)
    assert pace.left == 7 and pace.seconds_left == 7 * 2.0
    pace.note(0, 10, 14.0)  # another loop, as of a refiner
    assert pace.seconds_left == 10 * 2.0


def turns_that_need(*seconds: float, logged: bool = False) -> list[Turn]:
    turns = [Turn(index, lambda: None, Nobody()) for index in range(len(seconds))]
    for turn, needed in zip(turns, seconds, strict=True):
        turn.seconds_by_log = lambda needed=needed: needed if logged else None  # type: ignore[misc]
        turn.steps = lambda: (0, 1)
    return turns


def going_on(grace: Grace, turns: Sequence[Turn], seconds: Sequence[float]) -> list[int]:
    for turn, needed in zip(turns, seconds, strict=True):
        grace.calls(turn, "denoise")
        pace = grace._paces[turn.index]
        pace.left = int(needed)
        pace.recent.append(1.0)
    return [turn.index for turn in turns if grace.allows(turn, turns)]


@pytest.mark.parametrize(
    ("left", "expected"), [(None, [0, 1, 2]), (61.0, [0, 1, 2]), (59.0, [0, 2]), (29.0, [2]), (5.0, [2])]
)
def test_the_youngest_are_given_back_until_the_others_can_finish(left: float | None, expected: list[int]) -> None:
    """They need 20, 30 and 10 seconds. The one that is nearest to its end has no log, and may try."""
    seconds = (20.0, 30.0, 10.0)
    assert going_on(Grace(lambda: left), turns_that_need(*seconds), seconds) == expected


def test_decoding_and_writing_takes_time_too_and_is_not_given_back() -> None:
    seconds = (20.0, 30.0, 10.0)
    turns = turns_that_need(*seconds)
    grace = Grace(lambda: 40.0, after=6.0)
    assert going_on(grace, turns, seconds) == [2], "10 + 6, and 20 + 6 more are too much"
    grace.calls(turns[1], "decode")
    assert [turn.index for turn in turns if grace.allows(turn, turns)] == [1, 2]


def test_who_has_a_log_is_given_back_also_as_the_last_one() -> None:
    seconds = (20.0, 10.0)
    assert going_on(Grace(lambda: 5.0), turns_that_need(*seconds, logged=True), seconds) == []
    assert going_on(Grace(lambda: 15.0), turns_that_need(*seconds, logged=True), seconds) == [1]


def test_of_equals_the_first_go_on() -> None:
    seconds = (10.0,) * 4
    assert going_on(Grace(lambda: 25.0), turns_that_need(*seconds), seconds) == [0, 1]
