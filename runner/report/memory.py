"""How much memory a rank took at the most: its own, not what it shares with the other ranks of its node."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

import offload
from runner.components.component import Component
from runner.health.memory import own_host_bytes
from weights.agreement import this_node

_PERIOD_SECONDS = 0.2


class OwnMemory:
    """`peak`: the most bytes that were this process's alone, sampled five times a second, so that what comes and goes
    in between is not seen. Shared pages (files, a node's host store) are not its own, whatever the kernel's peak of
    the resident set says of them."""

    def __init__(self) -> None:
        self.peak = 0

    def sample(self) -> None:
        self.peak = max(self.peak, own_host_bytes())


@contextmanager
def own_memory() -> Iterator[OwnMemory]:
    """Sampled by a thread for as long as the block runs."""
    memory, over = OwnMemory(), threading.Event()

    def sample() -> None:
        while not over.wait(_PERIOD_SECONDS):
            memory.sample()

    memory.sample()
    thread = threading.Thread(target=sample, name="memory", daemon=True)
    thread.start()
    try:
        yield memory
    finally:
        over.set()
        thread.join()


def memory_of(components: Sequence[Component], device: torch.device, own: OwnMemory) -> dict[str, Any]:
    """Of this rank, in bytes: its own at the peak, the host stores that it maps, and what it took of the device: what
    tensors held (`allocated`), and what the allocator had for them (`reserved`)."""
    own.sample()
    figures: dict[str, Any] = {"peak_own_host_bytes": own.peak}
    stores = [offloader.store for one in components if (offloader := offload.offloader_of(one.module)) is not None]
    shared = sum(packing.num_bytes for store in stores if store.rest == "host" for packing in store.packings.values())
    figures |= {"node": this_node(), "shared_host_bytes": shared}
    if device.type != "cpu":
        figures["peak_device_bytes"] = torch.accelerator.max_memory_allocated(device)
        figures["peak_device_reserved_bytes"] = torch.accelerator.max_memory_reserved(device)
    return figures


def on_nodes(ranks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What each node's host memory held: the ranks' own, and the host stores once, however many ranks map them."""
    nodes: dict[str, dict[str, Any]] = {}
    for rank, figures in enumerate(ranks):
        node = nodes.setdefault(figures["node"], {"ranks": [], "own_host_bytes": 0, "shared_host_bytes": 0})
        node["ranks"].append(rank)
        node["own_host_bytes"] += figures["peak_own_host_bytes"]
        node["shared_host_bytes"] = max(node["shared_host_bytes"], figures["shared_host_bytes"])
    return list(nodes.values())
