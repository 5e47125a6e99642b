"""Requests to stop: signals and a stop file."""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from runner.health.torchrun import DEATH_SIGNAL

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, DEATH_SIGNAL)
POKE = b"\0"


class Inbox:
    """Signals that have come in, to be read by another thread than the main one.

    Python runs a signal's handler between two steps of the main thread, which may be inside a collective for minutes;
    the byte in this socket is written at once.
    """

    def __init__(self) -> None:
        self._read, self._write = socket.socketpair()
        for end in (self._read, self._write):
            end.setblocking(False)

    def fileno(self) -> int:
        return self._read.fileno()

    def poke(self) -> None:
        """Wake the reader without a signal."""
        try:
            self._write.send(POKE)
        except BlockingIOError:
            return  # full: the reader has enough to wake up for

    def signals(self) -> list[signal.Signals]:
        try:
            received = self._read.recv(4096)
        except BlockingIOError:
            return []
        return [signal.Signals(number) for number in received if bytes([number]) != POKE and number in SIGNALS]

    @contextmanager
    def catching(self) -> Iterator[None]:
        """While open, signals come here, and do nothing else. Only in the main thread."""
        before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
        wakeup = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)


class StopFile:
    """A file that asks the job to stop; removed once it is heeded, so that the next run does not stop too.

    `path` is None until the job knows its output folder. A folder of that name asks for nothing.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path

    def is_there(self) -> bool:
        return self.path is not None and os.path.lexists(self.path) and not self.path.is_dir()

    def remove(self) -> None:
        if self.path is not None and self.is_there():
            with suppress(OSError):  # the job is made; a file that cannot be removed stops the next one, and says so
                self.path.unlink()
