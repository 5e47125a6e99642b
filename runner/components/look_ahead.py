"""What of the next stage comes up while a stage ends: one rule, for a job that runs and for its plan."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise


@dataclass(frozen=True)
class Moves:
    """Of a component. Bytes that are on the device while its stage runs, and not between stages; of them those of its
    ring, None where it is not offloaded. `is_sharded`: other ranks take part when its weights come up."""

    stage: str
    moving: int
    ring: int | None
    is_sharded: bool


def look_ahead(components: Sequence[Moves]) -> dict[int, int]:
    """By the place of the last component of a stage: that of the offloaded one that the next stage begins with, whose
    ring is filled meanwhile.

    Only where that raises no peak of what moves: another stage has as much of it up anyhow. What calls hold beside
    weights is known to the plan alone, which counts a ring that comes up early. What a sharded component gathers is not
    known here, so nothing comes up beside one.
    """
    stages = [list(places) for _, places in groupby(range(len(components)), key=lambda place: components[place].stage)]
    up = [sum(components[place].moving for place in stage) for stage in stages]
    ahead = {}
    for (stage, now), (following, _) in pairwise(zip(stages, up, strict=True)):
        first = components[following[0]]
        # A rank whose request fails before the next stage would not take part in reading it.
        if first.ring is None or first.is_sharded or any(components[place].is_sharded for place in stage):
            continue
        if now + first.ring <= max(up):
            ahead[stage[-1]] = following[0]
    return ahead
