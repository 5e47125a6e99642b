"""What ranks that share weights do together, counted on each: forwards, and gathers in their order."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from torch.profiler import ProfilerActivity, profile

from runner.pipeline.pipeline import Pipeline


@dataclass
class Counted:
    """On this rank: forwards of each component whose weights ranks share, and each gather of a unit of them."""

    forwards: Counter[str] = field(default_factory=Counter)
    gathers: list[str] = field(default_factory=list)


@contextmanager
def alike_in_each_copy(pipeline: Pipeline) -> Iterator[Counted]:
    """Around requests, however they end: the ranks of each sharded copy make as many forwards, and the same gathers in
    the same order. Collective."""
    counted = Counted()
    sharded = [component for component in pipeline.components if component.is_sharded]
    hooks = [one.module.register_forward_hook(partial(_count, counted, one.name)) for one in sharded]
    try:
        with profile(activities=[ProfilerActivity.CPU]) as trace:
            yield counted
    finally:
        for hook in hooks:
            hook.remove()
    gathers = [event for event in trace.events() or () if event.name.startswith("FSDP::all_gather (")]
    counted.gathers = [event.name for event in sorted(gathers, key=lambda event: event.time_range.start)]
    told = pipeline.world.gather((dict(counted.forwards), counted.gathers))
    (size,) = {component.placement.ranks for component in sharded}
    first = pipeline.world.rank // size * size  # the ranks of a copy are consecutive
    for rank, (forwards, gathers_there) in enumerate(told[first : first + size], first):
        assert forwards == dict(counted.forwards), f"rank {rank}: {told}"
        assert gathers_there == counted.gathers, f"rank {rank}"
    assert counted.forwards and counted.gathers, "something was made"


def _count(counted: Counted, name: str, *_: object) -> None:
    counted.forwards[name] += 1


_count.__module__ = "offload"  # calls with a stranger's hooks inside are not shared out
