"""Layerwise offload: a component's weights rest in a store, and its blocks come to the device for their own forward."""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import nn

from offload.binding import UnitWeights
from offload.engines.engine import CopyEngine
from offload.offloaded import Offloaded, is_offloaded, kept_buffers
from offload.placeholder import is_described, supports
from offload.stores.store import Store
from offload.units import BUFFERS, ENTRY_POINTS, find_blocks, weights_of
from weights.blocks import spread
from weights.modes import refuse_inference_mode


def offload(
    module: nn.Module,
    store: Store,
    *,
    device: torch.device,
    window: int | Literal["all"] = 2,
    resident_blocks: int = 0,
    engine: CopyEngine | None = None,
    entry_points: Iterable[str] = ENTRY_POINTS,
) -> Offloaded:
    """Let `module`'s weights rest in `store` and come to `device` for their use. In place; weights may be real or meta.

    `store` holds the units that `plan_units(module)` names, with the true weights; what the module holds is dropped.
    `window` blocks are on the device at once: the one that runs, and those expected next; "all" is the whole component
    between `begin()` and `end()`. `resident_blocks` blocks, spread evenly, come now and stay. Buffers that are not
    persistent are in no store: they go to the device and stay. `engine` may be shared by components of one device, and
    is the caller's to close; without one the component makes its own. Weights are frozen until `remove()`.

    Memory on the device: `bytes_bound` of the result while a stage runs, `bytes_at_rest` otherwise.

    Raises ValueError for a module that is offloaded already, weights that the store does not hold as the module
    declares them, buffers without values, quantised weights; StoreError where a resident block cannot be read.
    """
    refuse_inference_mode("offload a module")
    if window != "all" and (not isinstance(window, int) or window < 1):
        raise ValueError(f"window={window!r}; it is the number of blocks on the device at once: 1 or more, or 'all'")
    blocks = find_blocks(module, entry_points)
    weights = weights_of(module, blocks)
    _refuse(module, [weight.tensor for unit in weights.values() for weight in unit])
    resident = {*spread(list(blocks), resident_blocks), *({BUFFERS} & set(weights))}
    units = {name: UnitWeights(name, unit, store) for name, unit in weights.items()}
    offloaded = Offloaded(module, store, device, units, resident, window, engine)
    offloaded.attach(blocks, entry_points)
    return offloaded


def _refuse(module: nn.Module, weights: Iterable[torch.Tensor]) -> None:
    title = type(module).__name__
    if any(is_described(weight) for weight in weights) or any(map(is_offloaded, module.modules())):
        raise ValueError(f"{title}, or a module that it shares weights with, is offloaded already; remove() that first")
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_inference():
            raise ValueError(f"{title}.{name} is an inference tensor; load the component in normal mode")
        if not supports(tensor):
            raise ValueError(f"{title}.{name} is a {type(tensor).__name__}; only plain tensors can be offloaded")
    if any(buffer.is_meta for buffer in kept_buffers(module)):
        raise ValueError(f"{title} has non-persistent buffers on meta, which no file holds; build it with real buffers")
