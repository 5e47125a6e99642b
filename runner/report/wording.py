"""Figures as a person reads them: bytes, seconds, times."""

import time
from typing import Any


def in_bytes(value: Any) -> str:
    """`1.5 GiB`; empty for what is no number."""
    if not isinstance(value, int | float):
        return ""
    size = float(value)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" or abs(size) >= 100 else f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} TiB"


def in_seconds(value: Any) -> str:
    """`42 ms`, `1.5 s`, `3 min 5 s`, `2 h 10 min`, `3 d 4 h`; empty for what is no number."""
    if not isinstance(value, int | float):
        return ""
    if 0 < value < 0.1:
        return f"{1000 * value:.0f} ms"
    if value < 60:
        return f"{value:.3g} s" if value < 10 else f"{value:.1f} s"
    total = round(value)
    for unit, seconds, below, part in (("d", 86_400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if total >= seconds:
            rest = total % seconds // part
            return f"{total // seconds} {unit}" + (f" {rest} {below}" if rest else "")
    raise AssertionError(value)


def at_time(value: Any) -> str:
    """Seconds of the epoch, in local time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value)) if isinstance(value, int | float) else ""
