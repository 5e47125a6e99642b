"""What the active adapters together do to one component: the terms that are added to each of its weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from lora.adapter import Adapter, LowRank

Terms = tuple[tuple[LowRank, float], ...]
"""(change, weight) of each adapter, in the order they are added, which decides the last bit."""


@dataclass(frozen=True)
class Edits:
    """Terms by the name of the weight they are added to; a weight that is not named rests as it is."""

    terms: Mapping[str, Terms] = field(default_factory=dict)

    def of(self, name: str) -> Terms:
        return self.terms.get(name, ())


def edits_of(component: str, adapters: Mapping[str, Adapter], active: Mapping[str, float]) -> Edits:
    """The edits of one component while `active` adapters (weight by name) are on. A weight of zero is off."""
    terms: dict[str, Terms] = {}
    for name, weight in active.items():
        if weight == 0:
            continue
        for target, change in adapters[name].components.get(component, {}).items():
            terms[target] = (*terms.get(target, ()), (change, weight))
    return Edits(terms)
