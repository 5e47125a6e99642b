"""Which rank keeps a job from getting on, and what ranks tell each other."""

import socket
import time
from typing import Any

from runner.health.diagnosis import deaf_ranks, silent_rank, stuck_rank
from runner.health.fault import Fault, Status
from runner.health.links import Link, Waiting
from runner.health.messages import Bye, End, Heartbeat, Report, Stop


def link(rank: int, silent_for: float, **status: Any) -> Link:
    ours, _ = socket.socketpair()
    made = Link(rank, ours)
    made.heard = time.monotonic() - silent_for
    made.status = Status(rank=rank, host=f"n{rank}", stage="denoise", **status)
    return made


def test_the_longest_silence_is_the_cause_unless_it_is_a_farewell() -> None:
    links = [link(1, 3), link(2, 9), link(3, 20)]
    links[2].said_bye = True
    fault = silent_rank(links, 5)
    assert fault is not None and fault.rank == 2 and "no sign of life for 9 s" in fault.line()
    assert silent_rank(links, 10) is None and silent_rank([], 1) is None
    assert [status.rank for status in deaf_ranks(links)] == [2]


def test_the_longest_standstill_is_the_cause() -> None:
    states = [Status(rank=0, standstill=2.0), Status(rank=1, host="n1", standstill=30.0), Status(rank=2)]
    fault = stuck_rank(states, 20)
    assert fault is not None and fault.rank == 1 and "no progress for 30 s" in fault.cause
    assert stuck_rank(states, 40) is None


def test_messages_come_whole_and_an_end_is_told_from_silence() -> None:
    ours, theirs = socket.socketpair()
    here, there = Link(1, ours), Link(0, theirs)
    assert here.receive() == []
    said = [Stop("SIGTERM"), End(4, (Status(rank=3),)), Heartbeat(Status(prompt="x" * 60)), Bye()]
    said.append(Report(Fault.at(Status(rank=1), "lost", by_request=True), is_echo=True))
    for message in said:
        there.send(message)
    waiting = Waiting([here])
    assert waiting.wait(1) == [here]
    assert here.receive() == said
    theirs.send(b'{"kind": "Unheard-of"}\n[1]\nnot JSON\n{"half": ')
    assert here.receive() == [], "what is no message of ours is left out"
    there.close()
    assert here.receive() is None
    here.send(Bye())  # into the void
