"""A rank's peak is of its own memory; what a node's ranks share is counted once."""

import time

import torch

from offload.stores.shared_memory import SharedMemory
from runner.report.memory import on_nodes, own_memory

MIB = 2**20


def test_the_peak_is_seen_also_when_the_memory_is_gone_again() -> None:
    with own_memory() as own:
        start = own.peak
        block = torch.ones(200 * MIB, dtype=torch.uint8)
        time.sleep(0.6)
        del block
        time.sleep(0.3)
    assert 180 * MIB < own.peak - start < 260 * MIB


def test_shared_memory_is_nobodys_own() -> None:
    with own_memory() as own:
        start = own.peak
        shared = SharedMemory(200 * MIB, None)
        shared.bytes.fill_(1)
        time.sleep(0.6)
        shared.close()
    assert own.peak - start < 40 * MIB


def test_a_nodes_host_store_is_counted_once() -> None:
    ranks = [
        {"node": node, "peak_own_host_bytes": own, "shared_host_bytes": 700}
        for node, own in (("a", 10), ("a", 20), ("b", 5))
    ]
    assert on_nodes(ranks) == [
        {"ranks": [0, 1], "own_host_bytes": 30, "shared_host_bytes": 700},
        {"ranks": [2], "own_host_bytes": 5, "shared_host_bytes": 700},
    ]
