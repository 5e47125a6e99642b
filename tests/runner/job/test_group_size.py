"""How large a group `auto` chooses, from what was measured."""

import pytest

from runner.job.group_size import ENOUGH, LARGEST, Figures, Measured, choose

MANY = 5040  # for each size, as good as all waves are whole


def figures(
    transfer: float, *, compute: float = 1.0, rest: float = 0.0, hides: bool = True, room: int | None = None
) -> Figures:
    return Figures({"transformer": Measured(4, compute, transfer, hides)}, rest, room)


@pytest.mark.parametrize(("transfer", "number"), [(0.0, 1), (0.5, 1), (1.0, 1), (2.0, 2), (3.0, 3), (3.5, 4), (7.9, 8)])
def test_where_transfer_hides_behind_compute_as_many_as_hide_it(transfer: float, number: int) -> None:
    assert choose([figures(transfer)], MANY).number == number


def test_where_it_does_not_hide_as_many_as_still_make_a_difference() -> None:
    choice = choose([figures(0.5, hides=False)], MANY)
    assert choice.expected[choice.number] <= choice.expected[LARGEST] * (1 + ENOUGH)
    assert choice.expected[choice.number - 1] > choice.expected[LARGEST] * (1 + ENOUGH)
    assert choose([figures(0.01, hides=False)], MANY).number == 1


def test_a_pass_that_is_a_small_part_of_a_request_decides_nothing() -> None:
    assert choose([figures(3.0, rest=1000.0)], MANY).number == 1


def test_no_more_than_there_are_or_the_memory_holds() -> None:
    assert choose([figures(100.0)], MANY).number == LARGEST
    assert choose([figures(100.0)], 5).number == 5
    assert choose([figures(100.0)], 0).number == 1
    tight = choose([figures(100.0), figures(100.0, room=2)], MANY)
    assert tight.number == 3 and "the memory holds no more" in tight.reason
    assert choose([figures(100.0, room=0)], MANY).number == 1


def test_what_is_left_is_shared_out_to_waves_that_are_alike() -> None:
    """Seven in groups of three: one of three, and two of two, which do not hide what three do. In two waves all do."""
    assert choose([figures(3.0)], 7).number == 4
    assert choose([figures(3.0)], 6).number == 3
    assert choose([figures(2.9)], 7).expected[3] == pytest.approx(4 * (3 + 2 * 2.9) / 7)


def test_the_slowest_rank_decides_for_all() -> None:
    assert choose([figures(1.0), figures(4.0)], MANY).number == 4


def test_encoders_count_as_often_as_they_run() -> None:
    """One slow pass of an encoder against fifty of a denoiser that gain nothing."""
    parts = {"text_encoder": Measured(1, 0.1, 30.0, True), "transformer": Measured(50, 1.0, 0.2, True)}
    choice = choose([Figures(parts, 5.0, None)], MANY)
    assert 4 <= choice.number < LARGEST and choice.described()["chosen"] == choice.number
