"""What a recipe's weights take on each device and on the host, worked out from the real sizes."""

import copy
from dataclasses import dataclass

import torch
from torch import nn

import offload
import sharding
from runner.components.component import METHODS
from runner.components.groups import placement_of
from runner.components.skeleton import dtype_plan
from runner.config import PlacementConfig, Rest, RunConfig, Share
from tests.recipes.real_sizes import components
from weights.blocks import spread
from weights.tied import find_weights


@dataclass(frozen=True)
class Fit:
    """Bytes: on each device at most, over the stages; on the host of a node."""

    device: int
    host: int


@dataclass(frozen=True)
class _Part:
    """Bytes of a component on the device: always, and more while its stage runs; of its host copy."""

    at_rest: int
    moving: int = 0
    host: int = 0


def fit(recipe: str, config: RunConfig, ranks: int) -> Fit:
    parts = {}
    for name, module in components(recipe).items():
        own = config.components.get(name)
        dtype = getattr(torch, (own.dtype if own and own.dtype else config.model.dtype).value)
        module = copy.deepcopy(module)
        sharding.set_dtype(module, dtype_plan(module, dtype))
        parts[name] = _part(module, placement_of(name, config), ranks)
    stages = {name: "encode" if "encoder" in name else "decode" if "vae" in name else "denoise" for name in parts}
    at_rest = sum(part.at_rest for part in parts.values())
    moving = [sum(parts[n].moving for n, other in stages.items() if other == stage) for stage in set(stages.values())]
    return Fit(at_rest + max(moving), sum(part.host for part in parts.values()))


def _part(module: nn.Module, placement: PlacementConfig, ranks: int) -> _Part:
    whole = sum(w.tensor.nbytes for w in find_weights(module))
    if placement.share is Share.shard:
        with sharding.fake_world(ranks):
            mesh = sharding.build_mesh("cpu", shard=ranks, replicate=1)
            found = sharding.layout(sharding.shard(module, mesh=mesh, resident_blocks=placement.resident_blocks))
        return _Part(found.at_rest, found.outside_blocks + (2 + placement.prefetch) * found.largest_block)
    if placement.rest is Rest.device:
        return _Part(whole)
    units = offload.plan_units(module, ("forward", *METHODS))
    sizes = {name: sum(tensor.nbytes for tensor in tensors.values()) for name, tensors in units.items()}
    outside, buffers = sizes.pop(""), sizes.pop("buffers", 0)
    resident = set(spread(list(sizes), placement.resident_blocks))
    streamed = sorted((size for name, size in sizes.items() if name not in resident), reverse=True)
    window = len(streamed) if placement.window == "all" else int(placement.window)
    kept = buffers + sum(sizes[name] for name in resident)
    return _Part(kept, outside + sum(streamed[:window]), whole if placement.rest is Rest.host else 0)
