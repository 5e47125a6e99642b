"""Files that are written whole or not at all."""

import json
import math
import os
import re
import secrets
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def write_whole(path: Path, write: Callable[[Path], object], *, flush: bool = True) -> None:
    """Let `write` fill a hidden temporary file beside `path`, then move it into place. Without `flush`, a node that
    loses its power may leave an empty file: for what is soon written again, or can be."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Random, not the process's id: nodes share the folder, and a process may write one file from two threads.
    temp = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        write(temp)
        if flush:
            with temp.open("rb") as file:
                os.fsync(file.fileno())
        os.replace(temp, path)
    finally:
        temp.unlink(missing_ok=True)


def is_temporary(path: Path) -> bool:
    """Whether the file is one that `write_whole` was about to move into place."""
    return re.fullmatch(r"\..*\.tmp(\.\w+)?", path.name) is not None


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
    write_whole(path, lambda temp: temp.write_text(text, encoding="utf-8", errors="replace"))


def read_json(path: Path) -> dict[str, Any]:
    """The object in the file; empty when there is no such file, or none that can be read."""
    try:
        return parse_object(path.read_bytes()) or {}
    except FileNotFoundError:
        return {}


def parse_object(text: bytes) -> dict[str, Any] | None:
    """The object that strict JSON describes: NaN and infinity, which Python would take, are none. None for all else."""
    try:
        value = json.loads(text, parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(text)
    return number


def slug(prompt: str | int, limit: int = 40) -> str:
    """A file name part: lower-case ASCII letters, digits and hyphens, never empty."""
    part = re.sub(r"[^a-z0-9]+", "-", plain_letters(str(prompt)).lower()).strip("-")
    return part[: max(limit, 0)].strip("-") or "untitled"


def plain_letters(text: str) -> str:
    """The text with its accents and compatibility forms taken apart and the accents dropped."""
    return "".join(letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
