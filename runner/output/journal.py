"""A file of JSON lines that only grows, and survives whatever ends the process that writes it."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from runner.output.write import parse_object, write_whole

JsonObject = Mapping[str, Any]


class Journal:
    """Lines on disk. `append` returns when they are on the disk; `lines` leaves out what a dying process half wrote."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self) -> tuple[list[dict[str, Any]], int]:
        """Every whole line, and how many are damaged: cut short by a kill or a full disk, or no object."""
        if not self.path.exists():
            return [], 0
        *texts, rest = self.path.read_bytes().split(b"\n")
        parsed = [parse_object(text) for text in texts if text.strip()]
        whole = [line for line in parsed if line is not None]
        return whole, len(parsed) - len(whole) + (rest != b"")

    def lines_from(self, start: int) -> tuple[list[dict[str, Any]], int]:
        """Every whole line that is there from byte `start` on, and where the next one will begin."""
        try:
            with self.path.open("rb") as file:
                file.seek(start)
                *texts, rest = file.read().split(b"\n")
                end = file.tell() - len(rest)
        except FileNotFoundError:
            return [], start
        parsed = [parse_object(text) for text in texts if text.strip()]
        return [line for line in parsed if line is not None], end

    def append(self, lines: Iterable[JsonObject]) -> None:
        """In one write, so that lines of two processes do not mix."""
        data = _encoded(lines)
        if not data:
            return
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            while data:  # a disk that is nearly full takes a part, and raises the next time
                data = data[os.write(file, data) :]
            os.fsync(file)
        finally:
            os.close(file)

    def rewrite(self, lines: Iterable[JsonObject]) -> None:
        """Exactly these lines, replaced whole."""
        data = _encoded(lines)
        write_whole(self.path, lambda temp: temp.write_bytes(data))


def _encoded(lines: Iterable[JsonObject]) -> bytes:
    text = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False, default=str) + "\n" for line in lines)
    return text.encode("utf-8", "replace")
