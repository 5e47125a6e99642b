"""How much memory a piece of code takes, seen from outside."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def peak_anonymous_memory() -> Iterator[Callable[[], int]]:
    """Bytes of anonymous memory at the peak above the start, sampled each millisecond."""
    start, peak, done = _anonymous_bytes(), 0, threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, _anonymous_bytes() - start)
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
