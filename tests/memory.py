"""How much memory a piece of code takes, seen from outside."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path


def peak_anonymous_memory() -> AbstractContextManager[Callable[[], int]]:
    """Bytes of anonymous memory at the peak above the start, sampled each millisecond."""
    return peak_above_start(_anonymous_bytes)


@contextmanager
def peak_above_start(count: Callable[[], int]) -> Iterator[Callable[[], int]]:
    """The most that `count` gives above what it gives at the start, sampled each millisecond."""
    start, peak, done = count(), 0, threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, count() - start)
            time.sleep(0.001)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield lambda: peak
    finally:
        done.set()
        thread.join()


def _anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024
