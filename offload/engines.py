"""Which copy engine a device gets."""

import torch

from offload.copy_engine import CopyEngine
from offload.inline_engine import InlineEngine
from offload.stream_engine import StreamEngine, has_streams
from offload.thread_engine import ThreadEngine


def engine_for(device: torch.device) -> CopyEngine:
    """Threads for the CPU; streams where the device has a second one to offer (cuda, xpu, npu); else copies in line."""
    if device.type == "cpu":
        return ThreadEngine(device)
    return StreamEngine(device) if has_streams(device) else InlineEngine(device)
