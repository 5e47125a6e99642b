"""Edits of weights: made on the device, on the copy of a unit that came up. What rests in a store is always the base.

[Note: where edits are made] After a unit's copy and before its first use, in the stream that computes, at each fetch.
So the arithmetic runs on the device, as it does for a component that stays there, and gives the same bits; a store is
only read, so what ranks share needs no agreement between them, and no way back; and a host store needs no copy of its
base. The other place was the host: the same bits too, and no work at a fetch from a host store, but the host's
arithmetic at each read of a file, and for each switch of a resident component.
"""

from collections.abc import Callable, Mapping

import torch

from offload.stores.packing import Packing

Edit = Callable[[torch.Tensor], None]
"""Changes a weight in place, from its base to what it should be; on the device, without waiting for it."""

UnitEdits = Mapping[str, Mapping[str, Edit]]
"""By unit, by the weight's name; units without any are not in it."""


def by_unit(packings: Mapping[str, Packing], edits: Mapping[str, Edit]) -> dict[str, dict[str, Edit]]:
    """Raises KeyError for a name that is in no unit."""
    units: dict[str, dict[str, Edit]] = {}
    unit_of = {name: unit for unit, packing in packings.items() for name in packing.tensors}
    for name, edit in edits.items():
        units.setdefault(unit_of[name], {})[name] = edit
    return units
