"""How much memory this process has now: its own, not what it shares with the other ranks of its node."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch


@dataclass(frozen=True)
class Memory:
    """In bytes; `device_bytes` is what tensors hold, 0 where there is no device beside the host."""

    host_bytes: int = 0
    device_bytes: int = 0


NONE = Memory()


def memory_now(device: torch.device) -> Memory:
    """For any thread; takes less than a tenth of a millisecond."""
    on_device = 0
    if device.type != "cpu" and hasattr(torch.accelerator, "memory_allocated"):
        with suppress(RuntimeError):  # the device has failed: the main thread will say so
            on_device = torch.accelerator.memory_allocated(device)
    return Memory(own_host_bytes(), on_device)


def own_host_bytes() -> int:
    """Shared pages (files, a node's host store) are not its own."""
    try:  # microseconds, where asking for the unique set walks through all mappings
        status = Path("/proc/self/status").read_text()
        return int(status.split("RssAnon:")[1].split()[0]) * 1024
    except (OSError, IndexError):  # not Linux
        return int(psutil.Process().memory_full_info().uss)
