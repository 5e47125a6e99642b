"""What a recipe's weights take on each device and on the host, in the real sizes, by the plan's arithmetic."""

import copy
from dataclasses import dataclass

import torch

import sharding
from runner.components.component import Component
from runner.components.groups import placement_of
from runner.components.skeleton import dtype_plan
from runner.config import RunConfig
from runner.plan.machine import Machine
from runner.plan.model import part_of
from runner.plan.needs import needs
from runner.plan.sizes import sizes_of
from runner.plan.work import Workload
from tests.recipes.real_sizes import components

_NO_CALLS = Workload({}, 0)


@dataclass(frozen=True)
class Fit:
    """Bytes: on each device at most, over the stages; on the host of a node, but for slices of what is sharded."""

    device: int
    host: int


def fit(recipe: str, config: RunConfig, ranks: int) -> Fit:
    sizes = []
    for name, module in components(recipe).items():
        own = config.components.get(name)
        dtype = getattr(torch, (own.dtype if own and own.dtype else config.model.dtype).value)
        module = copy.deepcopy(module)
        sharding.set_dtype(module, dtype_plan(module, dtype))
        stage = "encode" if "encoder" in name else "decode" if "vae" in name else "denoise"
        sizes.append(sizes_of(Component(name, module, stage)))
    sizes.sort(key=lambda one: one.stage)
    parts = [part_of(one, placement_of(one.name, config), _NO_CALLS, ranks) for one in sizes]
    needed = needs(parts, Machine(ranks, 1, 0, 0))
    return Fit(needed.device, sum(part.placed.shared for part in parts))
