"""What is said and written when a run ends without getting to its report."""

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from runner.errors import ExitCode
from runner.health.fault import Fault, Status
from runner.health.stderr import say
from runner.health.torchrun import tell_agent
from runner.output.manifest import Manifest
from runner.output.run_file import RunFile
from runner.output.turn_file import LastTurn, last_turn
from runner.progress import Progress

PAGE_SECONDS = 3.0
SECONDS = 5.0  # a network file system may be what was lost
SECONDS_TO_LOOK = 1.0  # for what is good to know


class LastLine:
    """One line on stderr, run.json, and whose try does not count. `run_file` is None until there is a folder."""

    def __init__(self, progress: Progress, run_file: RunFile | None = None) -> None:
        self.run_file = run_file
        self.page: Callable[[], None] | None = None  # writes the report, which shows what is said here
        self._has_spoken = False
        self._progress = progress
        self._is_wave_withdrawn = False

    def fault(self, fault: Fault, *, as_rank_0: bool) -> None:
        """Other ranks speak only for a rank 0 that cannot, and only one of them."""
        claims: list[Path] = []
        counted = {fault.request} if fault.by_request else set()
        withdrawn = [id for id in self._wave() if id not in counted]
        if not as_rank_0 and not self._is_first(claims):
            within(SECONDS, partial(self._withdraw, withdrawn))  # each knows what it has begun, and rank 0 is lost
            return
        self._has_spoken = True
        say(fault.line())
        tell_agent(fault.line())

        def write() -> None:
            # Both halves of a cut network speak; rank 0's word stays.
            if as_rank_0 or not (self.run_file and self.run_file.tells_of_fault()):
                self._write({"state": "fault", "exit_code": ExitCode.FAULT, "fault": asdict(fault)}, withdrawn)
            for claim in claims:
                claim.unlink()

        within(SECONDS, write)

    def where_it_was(self, lost: Status) -> Status:
        """With the request of a rank that was killed in a group: others have had their turn since it told of one."""
        found: list[LastTurn | None] = []
        if self.run_file is not None:
            path = self.run_file.folder.turn_of(lost.rank)
            within(SECONDS_TO_LOOK, lambda: found.append(last_turn(path)))
        wave = {request.id: request for request in self._progress.begun}
        if not found or found[0] is None or found[0].running not in wave:
            return lost
        request = wave[found[0].running]
        return replace(lost, request=request.id, prompt=request.title[:60])

    def stopped(self, reason: str) -> None:
        """The wave in progress is given up."""
        line = f"stopped: {reason}; the wave in progress is given up, the same command goes on"
        self._has_spoken = True
        say(line)
        tell_agent(line)
        news = {"state": "stopped", "exit_code": ExitCode.STOPPED, "stopped": reason}
        within(SECONDS, lambda: self._write(news, self._wave()))

    def show(self) -> None:
        """Write the report, where this rank has spoken: when the others have been told to end, who need not wait."""
        if self._has_spoken and self.page is not None:
            within(PAGE_SECONDS, self.page)

    def withdraw_wave(self) -> None:
        """The job is asked to stop: should the wave not get to its end, that is not its requests' doing.

        Written at once, as whoever asks may not wait: Slurm kills after KillWait, torchrun after its own timeout.
        """
        wave, self._is_wave_withdrawn = self._wave(), True
        if self.run_file is not None:
            within(SECONDS, partial(Manifest(self.run_file.folder).withdraw, wave))

    def _wave(self) -> list[str]:
        """The requests in progress whose try counts so far."""
        return [] if self._is_wave_withdrawn else [request.id for request in self._progress.begun]

    def _write(self, news: Mapping[str, Any], withdrawn: Sequence[str]) -> None:
        if self.run_file is None:
            return
        try:
            if self.run_file.is_ours():
                self.run_file.write(news)
                Manifest(self.run_file.folder).withdraw(withdrawn)
        except OSError as error:
            say(f"cannot write {self.run_file.folder.run_json}: {error}")

    def _withdraw(self, ids: Sequence[str]) -> None:
        if self.run_file is not None and ids and self.run_file.is_ours():
            with suppress(OSError):  # whoever was first says so
                Manifest(self.run_file.folder).withdraw(ids)

    def _is_first(self, claims: list[Path]) -> bool:
        """Whether no other rank has spoken; with the file that says so, which is to be removed."""
        run_file, second = self.run_file, list[bool]()
        if run_file is None:
            return True

        def claim() -> None:
            try:
                claims.append(run_file.claim())
            except FileExistsError:
                second.append(True)
            except OSError as error:  # a full or lost disk: two lines are better than none
                say(f"cannot write {run_file.folder.run_json}: {error}")

        within(SECONDS, claim)
        return not second


def within(seconds: float, action: Callable[[], None]) -> None:
    """Run `action` in a thread, and wait for it so long at most."""
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    thread.join(seconds)
