"""The best way to run a job on machines: placements, groups, and the ranks that make one request together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from runner.plan.machine import Machine, Rates
from runner.plan.model import Model
from runner.plan.search import Found, search
from runner.plan.seconds import seconds_of
from runner.plan.work import Work, Workload
from runner.team import divides

GROUPS = (1, 2, 4, 8, 16)  # how many requests are made together
_AGAIN = 5  # ways that are searched twice


@dataclass(frozen=True)
class Way:
    """A placement, and how ranks and requests go together. `latency`: seconds of one request made alone, by its team;
    `throughput`: requests an hour, of all ranks."""

    found: Found
    shard: int
    group: int
    guidance: int
    context: int
    latency: float
    throughput: float
    why: str

    def words(self) -> list[str]:
        mesh = {"guidance": self.guidance, "context": self.context}
        keys = [f"mesh.{name}={value}" for name, value in mesh.items() if value > 1]
        if any(part.shard > 1 for part in self.found.parts):
            keys.append(f"mesh.shard={self.shard}")
        return [*self.found.words(), *keys, *([f"job.group={self.group}"] if self.group > 1 else [])]


def ways(
    model: Model,
    workload: Workload,
    machine: Machine,
    rates: Rates,
    *,
    separate: int,
    contexts: Sequence[int],
    latency: bool,
) -> list[Way]:
    """All that fit, one for each mesh and group, the best first. `separate`: how many calls of a step are made
    one by one; `contexts`: how many ranks may share out a denoiser's tokens.

    There are tens of meshes and groups: each is searched roughly, and the best of them again."""

    def way(shard: int, group: int, guidance: int, context: int, *, roughly: bool) -> Iterator[Way]:
        shared = shared_out(model, workload, guidance, context)
        placed = search(model, shared, machine, rates, shard=shard, group=group, roughly=roughly)
        if placed:
            yield _way(placed[0], machine, rates, shard, group, guidance, context)

    def rank(way: Way) -> tuple[float, int]:
        return (float(f"{way.latency if latency else -way.throughput:.3g}"), len(way.words()))

    rough = [
        found
        for guidance, context in _teams(workload, machine.ranks, separate, contexts)
        for shard in _shards(machine, guidance * context)
        for group in ((1,) if latency else GROUPS)
        for found in way(shard, group, guidance, context, roughly=True)
    ]
    rough.sort(key=rank)
    again = [
        found for one in rough[:_AGAIN] for found in way(one.shard, one.group, one.guidance, one.context, roughly=False)
    ]
    return sorted([*again, *rough[_AGAIN:]], key=rank)


def _teams(workload: Workload, ranks: int, separate: int, contexts: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Guidance x context: no more ranks than a step has calls apart, and sizes that divide the ranks."""
    calls = max((work.together for work in workload.by_name.values()), default=1)
    for guidance in range(1, min(calls, separate) + 1):
        for shares in contexts:
            if ranks % (guidance * shares) == 0:
                yield guidance, shares


def _shards(machine: Machine, team: int) -> list[int]:
    """All ranks, those of a node, and those of a team."""
    sizes = {machine.ranks, machine.gpus, team}
    return sorted(size for size in sizes if machine.ranks % size == 0 and divides(size, team))


def shared_out(model: Model, workload: Workload, guidance: int, context: int) -> Workload:
    """What one rank of a team does: every guidance-th of the calls apart, and of each a part of its tokens."""

    def part(work: Work) -> Work:
        calls = work.calls * -(-work.together // guidance) // work.together
        return replace(
            work,
            calls=calls,
            flops=work.flops / context,
            activations=-(-work.activations // context),
            held=-(-work.held // context),
        )

    denoisers = {sizes.name for sizes in model.sizes if sizes.stage == "denoise"}
    by_name = {name: part(work) if name in denoisers else work for name, work in workload.by_name.items()}
    return replace(workload, by_name=by_name)


def _way(found: Found, machine: Machine, rates: Rates, shard: int, group: int, guidance: int, context: int) -> Way:
    teams = machine.ranks // (guidance * context)
    throughput = 3600 * teams / found.seconds if found.seconds else 0.0
    why = why_of(found, rates, machine, group)
    return Way(found, shard, group, guidance, context, found.seconds * group, throughput, why)


def why_of(found: Found, rates: Rates, machine: Machine, group: int) -> str:
    """Which component takes most of a request, and what it waits for."""
    passes = [(part, seconds_of(part, rates, machine, group)) for part in found.parts]
    part, one = max(passes, key=lambda pair: pair[0].work.calls * pair[1].whole)
    share = part.work.calls * one.whole / found.seconds if found.seconds else 0.0
    return f"{part.name} takes {share:.0%} of it, bound by {one.limit}"


def told(ways: Sequence[Way], *, latency: bool) -> str:
    """The best, and the runner-up: the first that goes another way, with what it is worse by."""
    if not ways:
        return "no placement of this model fits: use more GPUs or nodes, or larger ones"
    best, *others = ways
    lines = [f"best: {' '.join(best.words()) or 'all defaults'}", f"  {_figures(best)}; {best.why}"]
    second = next((way for way in others if way.words() != best.words()), None)
    if second is not None:
        better, worse = (best.latency, second.latency) if latency else (second.throughput, best.throughput)
        less = 1 - better / worse if worse else 0.0
        lines += [
            f"runner-up: {' '.join(second.words()) or 'all defaults'}",
            f"  {_figures(second)}, {_worse(less)}; {second.why}",
        ]
    if best.context > 1:
        lines.append("mesh.context moves last bits: it is part of the recipe")
    return "\n".join(lines)


def _figures(way: Way) -> str:
    return f"{way.throughput:,.1f} requests an hour, {way.latency:,.1f} s until the first one is there"


def _worse(part: float) -> str:
    return f"{part:.0%} worse" if part >= 0.005 else "as good, in more words"
