"""What a host store costs a node: the ranks' shares of its memory, in copies of the weights."""

import tempfile
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import torch
import torch.distributed as dist

from bench import offload_arms
from offload import offloader_of
from runner.components.groups import Groups
from runner.components.load import load_component
from runner.components.source import Source
from runner.config import PlacementConfig, Rest
from runner.world import World
from weights.agreement import node_group

SIZE = 4


def copies_on_node(folder: Path, weights: int, size: int = SIZE) -> tuple[float, float]:
    """(of the store, of all that the ranks took to be ready to run), in copies.

    Bytes are PSS: each page divided by the number of processes that map it, so that the ranks' add up to the node's.
    """
    context = get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="bench_offload.") as meeting:
        pipes, ranks = [], []
        for rank in range(size):
            ours, theirs = context.Pipe(duplex=False)
            ranks.append(context.Process(target=_rank, args=(theirs, rank, size, f"{meeting}/ranks", folder)))
            ranks[-1].start()
            theirs.close()
            pipes.append(ours)
        found = [pipe.recv() for pipe in pipes]
        for process in ranks:
            process.join()
    store, growth = (sum(column) for column in zip(*found, strict=True))
    return store / weights, growth / weights


def _rank(connection: Connection, rank: int, size: int, meeting: str, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    world = World(rank, size, offload_arms.CPU, dist.new_group(backend="gloo"))
    groups = Groups(node=node_group())
    dist.barrier()
    before = psutil.Process().memory_full_info().pss
    dist.barrier()
    placement = PlacementConfig(rest=Rest.host)
    source = Source(folder.name, offload_arms.CLASS, folder)
    model, _ = load_component(source, offload_arms.DTYPE, placement, world, groups)
    offloaded = offloader_of(model)
    assert offloaded is not None
    for unit in offloaded.store.packings:  # each rank has every page mapped, as it has after one step
        view = offloaded.store.view(unit)
        assert view is not None
        view[::4096].sum()
    dist.barrier()
    of_store = sum(mapped.pss for mapped in psutil.Process().memory_maps() if "dit-runner" in mapped.path)
    connection.send((of_store, psutil.Process().memory_full_info().pss - before))
    dist.barrier()
    dist.destroy_process_group()
