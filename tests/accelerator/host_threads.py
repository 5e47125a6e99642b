"""What one host thread does before another one, told to the software accelerator: futures and threads."""

import ctypes
import functools
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any


def follow(library: Path) -> None:
    """From now on, whoever reads a future's result comes after who set it, and a thread after who started it.

    A task of an executor comes after who submitted it: its executor hands it over through `Future`'s own condition, so
    the token lies on the future.
    """
    held = ctypes.PyDLL(str(library))  # calls with Python's lock held: see [Note: handing over] in csrc/kernels.cpp
    publish, take = held.soft_publish, held.soft_take
    publish.restype, take.argtypes, take.restype = ctypes.c_int64, [ctypes.c_int64], None

    def publishing(method: Any) -> Any:
        @functools.wraps(method)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            self._soft_token = publish()
            return method(self, *args, **kwargs)

        return call

    def taking_after(method: Any) -> Any:
        @functools.wraps(method)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return method(self, *args, **kwargs)
            finally:
                if (token := getattr(self, "_soft_token", None)) is not None:
                    take(token)

        return call

    for name in ("__init__", "set_result", "set_exception"):
        setattr(Future, name, publishing(getattr(Future, name)))
    for name in ("result", "exception", "set_running_or_notify_cancel"):
        setattr(Future, name, taking_after(getattr(Future, name)))
    _follow_threads(publish, take)


def _follow_threads(publish: Any, take: Any) -> None:
    start, run, join = threading.Thread.start, threading.Thread._bootstrap_inner, threading.Thread.join  # type: ignore[attr-defined]

    def started(self: Any) -> None:
        self._soft_token = publish()
        start(self)

    def running(self: Any) -> None:
        take(self._soft_token)
        try:
            run(self)
        finally:
            self._soft_token = publish()

    def joined(self: Any, timeout: float | None = None) -> None:
        join(self, timeout)
        if not self.is_alive() and hasattr(self, "_soft_token"):
            take(self._soft_token)

    threading.Thread.start, threading.Thread._bootstrap_inner, threading.Thread.join = started, running, joined  # type: ignore[method-assign,attr-defined]
