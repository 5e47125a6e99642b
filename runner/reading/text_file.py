"""A text file that the user wrote: read whole, as UTF-8, or refused with its line."""

import os
import re
import stat
from pathlib import Path

from runner.errors import UserError
from runner.reading.values import STRAY, stray_name

LONGEST_LINE = 1 << 20  # bytes: one line of hundreds of megabytes is some other file
_LINE_BREAK = re.compile(r"\r\n|\r|\n")


def read_text(path: Path, kind: str, largest: int) -> str:
    """The text of a file of at most `largest` bytes, without a byte order mark. `kind` is what it should be, in words.

    Raises UserError: there is no such file, it is no regular one, or not clean UTF-8 text.
    """
    try:
        _check_file(path, kind, largest)
        content = _content(path, kind)
    except OSError as error:
        raise UserError(f"{path}: cannot read the {kind} ({error.strerror or error}); check the path") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: the file is not UTF-8; save it as UTF-8") from error
    if stray := STRAY.search(text):
        line = len(_LINE_BREAK.findall(text, 0, stray.start())) + 1
        advice = "save the file as UTF-8, not UTF-16" if stray[0] == "\0" else "leave it out"
        raise UserError(f"{path}:{line}: the {kind} holds {stray_name(stray[0])}; {advice}")
    return text


def _check_file(path: Path, kind: str, largest: int) -> None:
    """Before it is opened: a pipe without a writer would be waited for, and a device read for ever."""
    try:
        found = path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            raise UserError(
                f"{path}: no such {kind}; it is a link to {os.readlink(path)}, which is not there"
            ) from None
        base = "" if path.is_absolute() else f" in {Path.cwd()}"
        raise UserError(f"{path}: no such {kind}{base}; check the path") from None
    if stat.S_ISDIR(found.st_mode):
        raise UserError(f"{path} is a folder, and no {kind}; name a file in it")
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{path} is a device or a pipe, and no {kind}; save it to a file first")
    if found.st_size > largest:
        raise UserError(f"{path} has {found.st_size:,} bytes; a {kind} has {largest:,} at most")


def _content(path: Path, kind: str) -> bytes:
    lines = []
    with path.open("rb") as stream:
        while line := stream.readline(LONGEST_LINE + 1):
            lines.append(line)
            if len(line) > LONGEST_LINE:
                where = f"{path}:{len(lines)}"
                raise UserError(f"{where}: a line of more than {LONGEST_LINE:,} bytes; is this a {kind}?")
    return b"".join(lines)
