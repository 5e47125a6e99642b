"""How the job stands in one line: on a terminal it is kept up to date, in a log it comes now and then."""

import shutil
import sys

from runner.health.stderr import say
from runner.report.live.status import JobStatus
from runner.report.wording import in_bytes, in_seconds

_LEAST = 30.0  # seconds between two lines of a log
_PART = 1 / 20  # of the time that has passed: a day is 120 lines
_BAR = 16  # cells
_BLOCKS = " ▏▎▍▌▋▊▉█"


class Line:
    """For the terminal or the log that stderr is."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._last: float | None = None
        self._said = ""

    def __call__(self, status: JobStatus) -> None:
        if not status.total:
            return
        if self._is_terminal:
            width = shutil.get_terminal_size().columns - 1
            # One write, so that a line of another thread does not come between. say() clears what is there.
            sys.stderr.write(f"\r\x1b[K{in_a_line(status, bar=True)[:width]}")
            sys.stderr.flush()
            return
        self._last = self._last or status.began
        if status.time - self._last >= max(_LEAST, _PART * (status.time - status.began)):
            self._last = status.time
            say(in_a_line(status))

    def clear(self) -> None:
        """The job is over: what comes now stands alone."""
        if self._is_terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def in_a_line(status: JobStatus, *, bar: bool = False) -> str:
    """`34 of 100 made, 1 failed, 2.3 a minute, 28 min left | denoise 12/30, 9/30 | 3.1 GiB`"""
    parts = [f"{status.made} of {status.total} made" + (f", {status.failed} failed" if status.failed else "")]
    if status.rate is not None and status.seconds_left is not None:
        parts[0] += f", {a_time(status.rate)}, {in_seconds(status.seconds_left)} left"
    parts.append(doing(status))
    if fullest := max((rank.device_bytes for rank in status.ranks), default=0):
        parts.append(f"{in_bytes(fullest)} of the device")
    parts += [status.note] if status.note else []
    parts += [f"stopping: {status.stopping}"] if status.stopping else []
    return (f"{_filled(status)} " if bar else "") + " | ".join(part for part in parts if part)


def a_time(rate: float) -> str:
    """Requests a second, minute or hour, so that the number is one that a person can tell apart."""
    for unit, seconds in (("second", 1), ("minute", 60), ("hour", 3600)):
        if rate * seconds >= 1 or unit == "hour":
            return f"{rate * seconds:.3g} a{'n' if unit == 'hour' else ''} {unit}"
    raise AssertionError(rate)


def doing(status: JobStatus) -> str:
    """What the ranks do: their stages, and the steps of the requests in the making; the spread of them, of many."""
    stages = list(dict.fromkeys(rank.stage for rank in status.ranks))
    steps = list({id: f"{done}/{total}" for rank in status.ranks for id, done, total in rank.steps if total}.values())
    if len(steps) > 4:
        counts = sorted((done, total) for rank in status.ranks for _, done, total in rank.steps if total)
        steps = [f"{counts[0][0]}/{counts[0][1]} to {counts[-1][0]}/{counts[-1][1]}"]
    return f"{', '.join(stages[:3])} {', '.join(steps)}".strip()


def _filled(status: JobStatus) -> str:
    eighths = round(8 * _BAR * min(1.0, (status.made + status.failed + status.under_way) / status.total))
    cells = [min(8, max(0, eighths - 8 * cell)) for cell in range(_BAR)]
    return f"{100 * eighths // (8 * _BAR):3d}% ▕{''.join(_BLOCKS[cell] for cell in cells)}▏"
