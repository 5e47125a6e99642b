"""Which copy engine a device gets."""

import torch

from offload.engines.engine import CopyEngine
from offload.engines.inline import InlineEngine
from offload.engines.stream import StreamEngine, has_streams
from offload.engines.thread import ThreadEngine


def engine_for(device: torch.device) -> CopyEngine:
    """Threads for the CPU; streams where the device has a second one to offer (cuda, xpu, npu); else copies in line."""
    if device.type == "cpu":
        return ThreadEngine(device)
    return StreamEngine(device) if has_streams(device) else InlineEngine(device)
