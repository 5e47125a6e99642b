"""What torch's profiler sees, each operator and kernel, as events of a rank's Chrome trace, on that trace's clock."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter, time_ns
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from runner.trace.clock import Start

FIRST_PID = 1000  # beyond the ranks: torch numbers its processes and devices as it likes


@contextmanager
def operators(start: Start) -> Iterator[list[dict[str, Any]]]:
    """The events, which are in the list when the block is left. Everything is held in memory until then."""
    found: list[dict[str, Any]] = []
    device = torch.accelerator.current_accelerator(check_available=True)
    own = getattr(ProfilerActivity, device.type.upper(), None) if device is not None else None
    with profile(activities=[ProfilerActivity.CPU, *([own] if own is not None else [])]) as trace:
        yield found
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "ops.json"
        trace.export_chrome_trace(str(file))
        told = json.loads(file.read_text(encoding="utf-8", errors="replace"))
    # Its times are of the day, from a base that it names; ours are from second 0, whose time of the day is known here.
    second_0 = time_ns() / 1e3 - (perf_counter() - start.own) * 1e6
    shift = told.get("baseTimeNanoseconds", 0) / 1e3 - second_0
    pids: dict[Any, int] = {}
    for event in told["traceEvents"]:
        event["pid"] = pids.setdefault(event.get("pid"), FIRST_PID + len(pids))
        if event.get("ph") != "M" and "ts" in event:
            event["ts"] = round(event["ts"] + shift, 3)
        found.append(event)
