"""Standard error that may stop taking anything: its reader is gone (`| head`), or the disk of the log is full."""

import sys
from contextlib import suppress
from typing import Any, TextIO


class BestEffort:
    """Writes to `stream` what it takes. What a job says must not be why it fails."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):  # ValueError: it was closed
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def say(line: str) -> None:
    """A line on standard error, if it still takes any. On a terminal it takes the place of a line that is being kept up
    to date there, which comes again below it."""
    with suppress(OSError, ValueError):
        print(f"\r\x1b[K{line}" if sys.stderr.isatty() else line, file=sys.stderr, flush=True)
