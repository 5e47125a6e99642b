"""How long the components of a request take, from what they compute and what has to come up for it."""

from collections.abc import Sequence
from dataclasses import dataclass

from runner.config import Rest, Share
from runner.plan.machine import Machine, Rates
from runner.plan.needs import Part

# As a job that measures decides.
LARGEST, ENOUGH = 16, 0.03


@dataclass(frozen=True)
class Pass:
    """Seconds of one pass over a component's blocks, of `group` calls that share it; `begin` comes on top once a stage.

    `compute` of one call; `link`, `disk`, `exchange`: what bringing the weights up would take by itself. `whole`: what
    one call takes of it, where weights come up while blocks compute.
    """

    compute: float
    link: float
    disk: float
    exchange: float
    begin: float
    whole: float
    limit: str


def seconds_of(part: Part, rates: Rates, machine: Machine, group: int = 1) -> Pass:
    placed = part.placed
    compute = part.work.flops / rates.flops
    link, disk, exchange = _transfer(part, rates, machine, placed.to_device, placed.read, placed.exchanged)
    begin = sum(_transfer(part, rates, machine, placed.begin_to_device, placed.begin_read, placed.begin_exchanged))
    # Ranks that read together give each other what they read in the thread that reads.
    together = part.placement.share is Share.shard and part.placement.rest is Rest.disk
    waits = {"the disk": disk + (exchange if together else 0.0), "the link": link}
    if not together:
        waits["the other ranks"] = exchange
    slowest = max(waits, key=lambda name: waits[name])
    transfer = waits[slowest] / group
    whole = max(compute, transfer) if _fetches_ahead(part) else compute + transfer
    return Pass(compute, link, disk, exchange, begin / group, whole, slowest if transfer > compute else "computing")


def _fetches_ahead(part: Part) -> bool:
    """Whether weights come up while blocks compute."""
    placement = part.placement
    if part.is_offloaded:
        return placement.window != 1
    return placement.share is Share.replicate or placement.prefetch > 0 or not placement.reshard_after_forward


def _transfer(
    part: Part, rates: Rates, machine: Machine, to_device: int, read: int, exchanged: int
) -> tuple[float, float, float]:
    """Of the link of each rank, of the disk that a node's ranks share, and of the network between ranks."""
    network = rates.within if part.shard <= machine.gpus else rates.between
    link = 0.0 if machine.is_host and part.placement.rest is Rest.disk else to_device / rates.link
    return link, machine.gpus * read / rates.disk, exchanged / network


def request_seconds(parts: Sequence[Part], rates: Rates, machine: Machine, group: int = 1) -> float:
    """One request of a group of so many, on one rank."""
    total = 0.0
    for part in parts:
        one = seconds_of(part, rates, machine, group)
        total += part.work.calls * one.whole + (one.begin if part.work.calls else 0.0)
    return total


def group_for(asked: int | str, parts: Sequence[Part], rates: Rates, machine: Machine) -> int:
    """How many requests a rank makes together: as asked, or for `auto` as few as serve as well as many."""
    if isinstance(asked, int):
        return asked
    if not any(part.placed.moves for part in parts):
        return 1
    seconds = {group: request_seconds(parts, rates, machine, group) for group in range(1, LARGEST + 1)}
    return next(group for group, taken in seconds.items() if taken <= seconds[LARGEST] * (1 + ENOUGH))
