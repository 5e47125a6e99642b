"""Who is blamed for a job that does not get on."""

import socket
import time
from typing import Any

from runner.health.diagnosis import deaf_ranks, silent_rank, stuck_rank
from runner.health.links import Link, Waiting


def link(rank: int, silent_for: float, **status: Any) -> Link:
    ours, _ = socket.socketpair()
    made = Link(rank, ours)
    made.heard = time.monotonic() - silent_for
    made.status = {"rank": rank, "host": f"n{rank}", "stage": "denoise", **status}
    return made


def test_the_longest_silence_is_blamed_unless_it_is_a_farewell() -> None:
    links = [link(1, 3), link(2, 9), link(3, 20)]
    links[2].said_bye = True
    fault = silent_rank(links, 5)
    assert fault is not None and fault.rank == 2 and "no sign of life for 9 s" in fault.line()
    assert silent_rank(links, 10) is None and silent_rank([], 1) is None
    assert [status["rank"] for status in deaf_ranks(links)] == [2]


def test_the_longest_standstill_is_blamed() -> None:
    states = [{"rank": 0, "still": 2.0}, {"rank": 1, "host": "n1", "still": 30.0}, {"rank": 2}]
    fault = stuck_rank(states, 20)
    assert fault is not None and fault.rank == 1 and "no progress for 30 s" in fault.cause
    assert stuck_rank(states, 40) is None


def test_messages_come_whole_and_an_end_is_told_from_silence() -> None:
    ours, theirs = socket.socketpair()
    here, there = Link(1, ours), Link(0, theirs)
    assert here.receive() == []
    there.send({"a": 1})
    there.send({"b": "x" * 1000})
    waiting = Waiting([here])
    assert waiting.wait(1) == [here]
    assert here.receive() == [{"a": 1}, {"b": "x" * 1000}]
    theirs.send(b'{"half": ')
    assert here.receive() == []
    there.close()
    assert here.receive() is None
    here.send({"into": "the void"})
