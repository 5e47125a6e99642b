"""A thread on rank 0 that tells, once a second, how the job stands."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace

from runner.health.stderr import say
from runner.health.watch import Watch
from runner.report.live.pace import Pace
from runner.report.live.status import PERIOD, JobStatus, RankStatus

_FAREWELL = 5.0  # seconds that the end of a job waits for a file system that holds a teller up

Teller = Callable[[JobStatus], None]


class Reader:
    """Puts together what all ranks last told."""

    def __init__(self, watch: Watch, run: str) -> None:
        self._watch, self._run = watch, run
        self._began, self._pace = time.time(), Pace()

    def status(self) -> JobStatus:
        statuses = self._watch.statuses()
        ranks = [RankStatus.of({**asdict(told), "ago": round(ago, 1)}) for told, ago in statuses]
        progress = self._watch.progress
        status = JobStatus(
            run=self._run,
            time=time.time(),
            began=self._began,
            made_now=sum(rank.made for rank in ranks),
            failed_now=sum(rank.failed for rank in ranks),
            note=progress.note,
            stopping=self._watch.stop_reason,
            ranks=ranks,
        )
        if (extent := progress.extent) is None:
            return status
        made, failed = extent.made_before + status.made_now, extent.failed_before + status.failed_now
        return self._with_pace(replace(status, total=extent.total, made=made, failed=failed))

    def _with_pace(self, status: JobStatus) -> JobStatus:
        under_way = status.under_way
        self._pace.see(time.monotonic(), status.made_now + status.failed_now + under_way)
        if (rate := self._pace.rate) is None:
            return status
        return replace(status, rate=rate, seconds_left=max(0.0, status.left - under_way) / rate)


@contextmanager
def pulse(reader: Reader, tellers: Sequence[Teller]) -> Iterator[None]:
    """Tell over this block, and once more at its end. A teller that fails is left out: what is told must not be why a
    job fails."""
    over, left = threading.Event(), list(tellers)

    def tell() -> None:
        status = reader.status()
        for teller in list(left):
            try:
                teller(status)
            except Exception as error:  # of any kind: a full disk, a folder that a consumer has moved
                left.remove(teller)
                say(f"{type(teller).__name__}: {type(error).__name__}: {error}; this is not told any more")

    def run() -> None:
        while not over.wait(PERIOD):
            tell()
        tell()

    thread = threading.Thread(target=run, name="pulse", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
    thread.join(_FAREWELL)  # after a fault nobody waits
