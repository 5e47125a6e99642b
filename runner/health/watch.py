"""A thread on every rank that sees what the main thread cannot: lost peers, a lost agent, a stuck rank, a call to stop.

[Note: how a job ends]
The main thread of a rank is often inside a call that will not return: a collective that waits for a dead peer, a
kernel, a dead file system. So whoever notices tells rank 0 over a link of its own (links.py), rank 0 says and writes
the one last line, tells every rank to end, and each ends by `os._exit` from this thread. When rank 0 is the one that is
lost, each other rank sees that itself, and one of them speaks.
"""

import os
import signal
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn, TypeVar

from runner.errors import ExitCode, UserError
from runner.health.diagnosis import SILENCE, deaf_ranks, kill_here, silent_rank, stuck_rank
from runner.health.fault import Fault, Status, fault_of, may_come_from_another_rank
from runner.health.last_line import LastLine
from runner.health.links import Link, Waiting, connect
from runner.health.memory import NONE, memory_now
from runner.health.messages import Bye, End, Heartbeat, Message, Report, Stop
from runner.health.stderr import say
from runner.health.stop import Inbox, StopFile
from runner.health.torchrun import DEATH_SIGNAL, agent_pid, end_agent_later, tell_agent
from runner.progress import WAITING, Progress
from runner.world import World

T = TypeVar("T")
TICK = 0.5  # seconds between two looks
ECHO = 1.5  # seconds that a failed collective waits for news of its cause on another rank
ANSWER = 8.0  # seconds that a rank waits for rank 0 to end the job before it speaks itself


@dataclass(frozen=True)
class Limits:
    timeout: float  # seconds of silence or standstill that end the job
    grace: float  # seconds for the wave in progress after a request to stop


class Watch:
    """This rank's watch: reads `progress`, which the main thread writes, and the links to other ranks."""

    def __init__(
        self,
        world: World,
        progress: Progress,
        links: list[Link],
        inbox: Inbox,
        limits: Limits,
        last_line: LastLine,
        stop_file: StopFile,
    ) -> None:
        self.stop_reason: str | None = None
        self.progress, self.last_line, self.stop_file = progress, last_line, stop_file
        self._world, self._links, self._inbox, self._limits = world, links, inbox, limits
        self._all_links = tuple(links)  # also those whose rank is gone
        self._agent = agent_pid()
        self._interrupts = 0
        self._deadline = float("inf")
        self._failure: tuple[float, Fault, bool] | None = None  # when, what, whether another rank may be the cause
        self._unanswered: Fault | None = None  # rank 0 was told of it, and has not ended the job yet
        self._told = 0.0
        self._memory = NONE
        self._got_on: tuple[tuple[object, ...], float] = ((), time.monotonic())
        self._waiting = Waiting([inbox, *links])
        self._closed: float | None = None  # when the main thread was done
        self._said_bye = False
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    # What the main thread calls.

    def start(self) -> None:
        self.progress.listener = self._inbox.poke  # so that the others know, should it be this rank's last request
        self._thread.start()

    def until_stopped(self, waves: Iterable[T]) -> Iterator[T]:
        """The waves, until any rank has been asked to stop: all ranks leave before the same one. Collective."""
        for wave in waves:
            if self.agree_to_stop():
                return
            yield wave

    def agree_to_stop(self) -> bool:
        """Whether any rank has been asked to stop; then all have. Collective."""
        if any(self._world.gather(self.stop_reason is not None)):
            self.stop_reason = self.stop_reason or "another rank was asked to stop"
        return self.stop_reason is not None

    def statuses(self) -> list[tuple[Status, float]]:
        """On rank 0, of each rank: what it last told, and how many seconds ago. For any thread."""
        now, links = time.monotonic(), sorted(self._all_links, key=lambda link: link.peer)
        here = Status.of(self.progress, now - self._got_on[1], self._memory)
        return [(here, 0.0), *((link.status, now - link.heard) for link in links)]

    def time_left(self) -> float | None:
        """Seconds until a wave in progress is given up; None while nobody has asked this rank to stop."""
        return None if self.stop_reason is None else max(self._deadline - time.monotonic(), 0.0)

    def fail(self, error: BaseException) -> NoReturn:
        """End the job, on every rank."""
        fault = fault_of(error, Status.of(self.progress))
        if self._world.size == 1:
            self.last_line.fault(fault, as_rank_0=True)
            self.last_line.show()
            raise SystemExit(ExitCode.FAULT)
        self._failure = (time.monotonic(), fault, may_come_from_another_rank(error))
        self._inbox.poke()
        self._thread.join()
        raise AssertionError("the watch ends the process")

    def close(self) -> None:
        """This rank is done. Waits until all are, as long as a rank may be silent."""
        self._closed = time.monotonic()
        self._inbox.poke()
        self._thread.join()
        if self.stop_reason is not None and self._world.rank == 0:
            self.stop_file.remove()

    # What the thread does.

    def _run(self) -> None:
        try:
            self._watch()
        except BaseException as error:
            # A job without its watch could hang for ever.
            say("".join(traceback.format_exception(error)))
            self._exit(ExitCode.FAULT)

    def _watch(self) -> None:
        next_look = 0.0
        while not self._all_have_said_bye():
            for ready in self._waiting.wait(TICK):
                if ready is self._inbox:
                    self._heed_signals()
                    self._beat()
                else:
                    self._hear(ready)
            if time.monotonic() >= next_look:
                next_look = time.monotonic() + TICK
                self._memory = memory_now(self._world.device)
                self._beat()
                self._check()

    def _beat(self) -> None:
        """Tell where this rank is. By the clock and by the main thread, never in answer: beats would answer beats."""
        if not self._said_bye:
            self._tell(Heartbeat(self._status()))

    def _all_have_said_bye(self) -> bool:
        """Nobody leaves before all have said bye, and bye is the last thing said: a connection that is closed with
        something unread is reset, and the other end loses what it has not read yet."""
        if self._closed is None:
            return False
        if not self._said_bye:
            self._tell(Bye())
            self._said_bye = True
        late = time.monotonic() - self._closed > self._limits.timeout
        return late or all(link.said_bye for link in self._links)

    def _heed_signals(self) -> None:
        for received in self._inbox.signals():
            if received is DEATH_SIGNAL:
                self._lose_agent()
                continue
            self._interrupts += received is signal.SIGINT
            if self._interrupts > 1:
                self._give_up("interrupted twice")
            self._stop(received.name)

    def _hear(self, link: Link) -> None:
        messages = link.receive()
        if messages is None:
            self._links.remove(link)
            self._waiting.leave_out(link)
            if not link.said_bye:
                cause = "its process ended without a word (killed, out of memory, or crashed)"
                self._end(Fault.at(self.last_line.where_it_was(link.status), cause, by_request=True))
            return
        for message in messages:
            self._heed(link, message)

    def _heed(self, link: Link, message: Message) -> None:
        match message:
            case Heartbeat(status):
                link.status = status
            case Bye():
                link.said_bye = True
            case Stop(reason):
                self._stop(reason)
            case Report(fault, is_echo):
                self._end(self._cause(fault) if is_echo else fault)
            case End(code, deaf, why):
                if self._world.rank == 0 and code == ExitCode.STOPPED:
                    self._give_up("another rank could not wait")
                kill_here(deaf)
                self._exit(code, why)

    def _tell(self, message: Message) -> None:
        for link in self._links:
            link.send(message)

    def _stop(self, reason: str) -> None:
        if self.stop_reason is None:
            self.stop_reason = reason
            self._deadline = time.monotonic() + self._limits.grace
            self._tell(Stop(reason))  # rank 0 passes it on
            if self._world.rank == 0:
                self.last_line.withdraw_wave()

    def _status(self) -> Status:
        """Loading may take its time, and who waits for another rank does not stand still by itself."""
        now, position = time.monotonic(), self.progress.position()
        if position != self._got_on[0] or not self.progress.begun or self.progress.stage == WAITING:
            self._got_on = (position, now)
        return Status.of(self.progress, now - self._got_on[1], self._memory)

    def _check(self) -> None:
        now = time.monotonic()
        if self._agent is not None and os.getppid() != self._agent:
            self._lose_agent()
        if self._failure is not None:
            when, fault, is_echo = self._failure
            if now - when > (ECHO if is_echo else 0):
                self._fail_here(fault, is_echo=is_echo)
        if self._world.rank == 0 and self.stop_reason is None and self.stop_file.is_there():
            self._stop(f"the stop file {self.stop_file.path}")
        if now > self._deadline + (0 if self._world.rank == 0 else ANSWER):
            self._give_up(f"{self.stop_reason}, and {self._limits.grace:g} s of grace")
        if self._unanswered is not None and now - self._told > ANSWER:
            self._end(self._cause(self._unanswered))
        if (fault_seen := self._lost_rank(self._limits.timeout, self._limits.timeout)) is not None:
            self._end(fault_seen)

    def _lose_agent(self) -> None:
        """torchrun leaves its workers behind when it is killed, and when it is interrupted twice."""
        if self.stop_reason is not None:
            self._give_up(f"{self.stop_reason}, and its torchrun agent did not wait")
        self._fail_here(Fault.at(Status.of(self.progress), "its torchrun agent is gone", by_request=False))

    def _lost_rank(self, silence: float, standstill: float) -> Fault | None:
        """Rank 0 sees what all say; the others can see only that rank 0 is lost."""
        if (silent := silent_rank(self._links, silence)) is not None or self._world.rank != 0 or not self._links:
            return silent
        return stuck_rank([self._status(), *(link.status for link in self._links if not link.said_bye)], standstill)

    def _cause(self, fault: Fault) -> Fault:
        """A collective fails because of the rank that did not come to it, where that can be seen."""
        return self._lost_rank(SILENCE, self._limits.timeout / 2) or fault

    def _fail_here(self, fault: Fault, *, is_echo: bool = False) -> None:
        if self._world.rank == 0:
            self._end(self._cause(fault) if is_echo else fault)
        elif self._unanswered is None:
            self._unanswered, self._told = fault, time.monotonic()
            self._tell(Report(fault, is_echo))

    def _end(self, fault: Fault) -> NoReturn:
        """By rank 0 for all, or by any other when rank 0 itself is lost."""
        self.last_line.fault(fault, as_rank_0=self._world.rank == 0)
        deaf = deaf_ranks(self._links)
        self._tell(End(ExitCode.FAULT, deaf, fault.line()))
        kill_here(deaf)
        self.last_line.show()
        self._exit(ExitCode.FAULT)

    def _give_up(self, reason: str) -> NoReturn:
        if self._world.rank == 0:
            self.last_line.stopped(reason)
        self._tell(End(ExitCode.STOPPED, why=f"stopped: {reason}"))
        self.last_line.show()
        self._exit(ExitCode.STOPPED)

    def _exit(self, code: int, why: str = "") -> NoReturn:
        """Without the main thread, which may never come back."""
        try:
            tell_agent(why or "ended together with the other ranks; rank 0 says why")
            end_agent_later(self._agent)
        finally:
            os._exit(code)


@contextmanager
def watching(
    world: World, progress: Progress, last_line: LastLine, limits: Limits, stop_file: StopFile
) -> Iterator[Watch]:
    """A watch over this block: an exception in it, a lost or a stuck rank ends the job on every rank. Collective."""
    inbox = Inbox()
    with inbox.catching():
        watch = Watch(world, progress, connect(world), inbox, limits, last_line, stop_file)
        watch.start()
        try:
            yield watch
        except UserError:
            watch.close()
            raise
        except Exception as error:  # of any kind: the other ranks must not wait for this one
            say("".join(traceback.format_exception(error)))
            watch.fail(error)
        watch.close()
