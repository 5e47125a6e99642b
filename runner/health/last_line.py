"""What is said and written when a run ends without getting to its report."""

import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from runner.errors import ExitCode
from runner.health.fault import Fault
from runner.output.manifest import Manifest
from runner.output.run_file import RunFile
from runner.progress import Progress

SECONDS = 5.0  # a network file system may be what was lost


class LastLine:
    """One line on stderr, run.json, and whose try does not count."""

    def __init__(self, run_file: RunFile, progress: Progress) -> None:
        self._run_file = run_file
        self._manifest = Manifest(run_file.folder)
        self._progress = progress
        self._is_wave_withdrawn = False

    def fault(self, fault: Fault, *, as_rank_0: bool) -> None:
        """Other ranks speak only for a rank 0 that cannot, and only one of them."""
        claims: list[Path] = []
        if not as_rank_0 and not self._is_first(claims):
            return
        say(fault.line())
        counted = {fault.request} if fault.by_request else set()
        withdrawn = [id for id in self._wave() if id not in counted]

        def write() -> None:
            # Both halves of a cut network speak; rank 0's word stays.
            if as_rank_0 or not self._run_file.tells_of_fault():
                self._write({"state": "fault", "exit_code": ExitCode.FAULT, "fault": asdict(fault)}, withdrawn)
            for claim in claims:
                claim.unlink()

        within(SECONDS, write)

    def stopped(self, reason: str) -> None:
        """The wave in progress is given up."""
        say(f"stopped: {reason}; the wave in progress is given up, the same command goes on")
        news = {"state": "stopped", "exit_code": ExitCode.STOPPED, "stopped": reason}
        within(SECONDS, lambda: self._write(news, self._wave()))

    def withdraw_wave(self) -> None:
        """The job is asked to stop: should the wave not get to its end, that is not its requests' doing.

        Written at once, as whoever asks may not wait: Slurm kills after KillWait, torchrun after its own timeout.
        """
        wave, self._is_wave_withdrawn = self._wave(), True
        within(SECONDS, lambda: self._manifest.withdraw(wave))

    def _wave(self) -> list[str]:
        """The requests in progress whose try counts so far."""
        return [] if self._is_wave_withdrawn else [request.id for request in self._progress.wave]

    def _write(self, news: Mapping[str, Any], withdrawn: Sequence[str]) -> None:
        try:
            if self._run_file.is_ours():
                self._run_file.write(news)
                self._manifest.withdraw(withdrawn)
        except OSError as error:
            say(f"cannot write {self._run_file.folder.run_json}: {error}")

    def _is_first(self, claims: list[Path]) -> bool:
        """Whether no other rank has spoken; with the file that says so, which is to be removed."""
        second: list[bool] = []

        def claim() -> None:
            try:
                claims.append(self._run_file.claim())
            except FileExistsError:
                second.append(True)
            except OSError as error:  # a full or lost disk: two lines are better than none
                say(f"cannot write {self._run_file.folder.run_json}: {error}")

        within(SECONDS, claim)
        return not second


def say(line: str) -> None:
    """On stderr, if it still takes anything: a log on the disk that is full must not keep the job from ending."""
    with suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)


def within(seconds: float, action: Callable[[], None]) -> None:
    """Run `action` in a thread, and wait for it so long at most."""
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    thread.join(seconds)
