"""Whose turn it is in a group, in a file that outlives its process: who is killed has no last word.

A group that is killed had begun all its requests, and only the one that ran may have brought it about. The file has
that one's id in a fixed place, written over at each switch. Nobody waits for the disk: what a process has written
is there for the others, however it ends. A node that loses its power loses it, and then all were tried.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

_WIDTH = 64  # bytes of an id, with spaces after it


@dataclass(frozen=True)
class LastTurn:
    """What a file says: the requests of the group, and which of them ran last."""

    group: Sequence[str]
    running: str


class TurnFile:
    """Of one rank, while it makes a group. Without the file the job goes on: a disk that is full says so elsewhere."""

    def __init__(self, path: Path, group: Sequence[str]) -> None:
        self._path = path
        self._file: int | None = None
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o644)
            os.write(self._file, b" " * _WIDTH + b"\n" + json.dumps(list(group)).encode() + b"\n")
        except OSError:
            self.close()

    def running(self, id: str) -> None:
        if self._file is not None:
            try:
                os.pwrite(self._file, id.encode().ljust(_WIDTH)[:_WIDTH], 0)
            except OSError:
                self.close()

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
            self._path.unlink(missing_ok=True)


def last_turn(path: Path) -> LastTurn | None:
    """None where there is no such file, or half of one."""
    try:
        running, group = path.read_bytes().split(b"\n")[:2]
        ids = json.loads(group)
    except (OSError, ValueError):
        return None
    if not (isinstance(ids, list) and all(isinstance(id, str) for id in ids)):
        return None
    return LastTurn(ids, running.decode("utf-8", "replace").strip())


def not_to_blame(paths: Iterable[Path]) -> list[str]:
    """The requests of all these groups that did not run when their ranks were killed. Ranks that make a request
    together may have been at different ones."""
    turns = [turn for turn in map(last_turn, paths) if turn is not None]
    running = {turn.running for turn in turns}
    return list(dict.fromkeys(id for turn in turns for id in turn.group if id not in running))
