"""One clock for ranks whose own clocks differ."""

import time

import pytest

from runner.trace.clock import common_start, offset_from_first
from tests.distributed.placed import joined
from tests.ranks import World, on_ranks
from weights.agreement import gather


@pytest.mark.parametrize("shift", [pytest.param(1000.0, marks=pytest.mark.slow), -3.25])
@on_ranks(2, 4)
def test_ranks_whose_clocks_differ_count_from_one_second_0(world: World, shift: float) -> None:
    group = joined(world).control

    def now() -> float:
        return time.perf_counter() + shift * world.rank

    offset = offset_from_first(group, now)
    assert offset.seconds == pytest.approx(-shift * world.rank, abs=max(offset.error, 1e-6))
    assert offset.error < 0.05
    start = common_start(group, now)
    gather(None, group)
    own = now() - start.own
    # On one machine the clocks are the same, but for the shift: what each reads may be compared.
    at_once = time.perf_counter()
    seconds = [mine - at for mine, at in gather((own, at_once), group)]
    assert max(seconds) - min(seconds) < 2 * max(one for one in gather(start.error, group)) + 2e-3
    assert len({began for began in gather(start.began, group)}) == 1


@on_ranks(1)
def test_a_rank_alone_asks_nobody(world: World) -> None:
    start = common_start(None)
    assert start.error == 0 and start.own == pytest.approx(time.perf_counter(), abs=5)
