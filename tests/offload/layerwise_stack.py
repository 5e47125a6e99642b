"""The small model, offloaded, and the output that it has without."""

from typing import Any

import torch

from offload import Offloaded, offload
from tests.offload.memory_store import MemoryStore
from tests.offload.offload_models import Stack, example

CPU = torch.device("cpu")


def offloaded_stack(num_blocks: int = 5, views: bool = False, **options: Any) -> tuple[Stack, MemoryStore, Offloaded]:
    model = Stack(num_blocks)
    store = MemoryStore(model, views=views)
    return model, store, offload(model, store, device=CPU, **options)


def plain_output(num_blocks: int = 5, order: Any = None) -> torch.Tensor:
    with torch.no_grad():
        return Stack(num_blocks)(example(), order)
