"""Part `handwritten`: sharding.shard against the loop that FSDP's own documentation shows, and against accelerate's
wrapping, on the same model."""

import functools
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

import sharding
from bench.cases import CASES, Case
from bench.paired import Arm, measure, refuse_unequal, report
from runner.world import World

AIM = 1.00  # ours / handwritten, with our best setting
_OURS = tuple(
    f"ours, {setting} / handwritten" for setting in ("prefetch=0", "prefetch=1", "prefetch=2", "inference mode")
)
_RATIOS = {
    "ours, prefetch=0 / handwritten": ("ours, prefetch=0", "handwritten"),
    "ours, prefetch=1 / handwritten": ("ours, prefetch=1", "handwritten"),
    "ours, prefetch=2 / handwritten": ("ours, prefetch=2", "handwritten"),
    "ours, inference mode / handwritten": ("ours, inference mode", "handwritten"),
    "ours, prefetch=1 / accelerate": ("ours, prefetch=1", "accelerate"),
    "ours, inference mode / accelerate": ("ours, inference mode", "accelerate"),
    "again / handwritten (noise)": ("again", "handwritten"),
}


def textbook_shard(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """https://docs.pytorch.org/tutorials/intermediate/FSDP_tutorial.html, for a Flux."""
    for blocks in (model.transformer_blocks, model.single_transformer_blocks):
        for block in blocks:
            fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def accelerate_shard(model: nn.Module) -> nn.Module:
    """As `Accelerator.prepare` wraps a model where it finds GPUs; on CPUs it would make DDP of it, so that the state is
    told, and its function called."""
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["FluxTransformerBlock", "FluxSingleTransformerBlock"],
        cpu_ram_efficient_loading=False,
    )
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), fsdp_plugin=plugin)
    accelerator.state.distributed_type, accelerator.state.fsdp_plugin = DistributedType.FSDP, plugin
    return fsdp2_prepare_model(accelerator, model)


def run(world: World, scale: float) -> dict[str, Any]:
    """Time both cases; rounds are multiplied by `scale`. Collective."""
    figures: dict[str, Any] = {}
    for case in CASES:
        if world.rank == 0:
            print(f"\nhandwritten, {case}; bitwise equal to the unsharded model", flush=True)
        times = measure(_arms(case, world), max(1, round(case.rounds * scale)), world)
        figures[case.name] = report(times, _RATIOS, world, f"sharded by hand, {case.name}")
        if world.rank == 0:
            best, found = min((times.ratio(*_RATIOS[label]).median, label) for label in _OURS)[::-1]
            print(f"  aim: the best of ours <= {AIM:.2f}: {'held' if found <= AIM else 'MISSED'} ({found:.4f}, {best})")
    return figures


def _arms(case: Case, world: World) -> dict[str, Arm]:
    """The arms, each checked against the unsharded model. Each sample is `steps` calls of one model."""
    device = world.device
    inputs = case.inputs(device)
    mesh = sharding.build_mesh(device.type)
    with torch.no_grad():
        expected = case.transformer(device)(**inputs)[0]

    def calls(model: nn.Module, mode: type[torch.no_grad | torch.inference_mode] = torch.no_grad) -> torch.Tensor:
        with mode():
            for _ in range(case.steps):
                output = model(**inputs)[0]
        sharding.reshard(model)  # alike for all: the root is gathered once a sample, and FSDP's record does not grow
        return output

    handwritten = textbook_shard(case.transformer(device), mesh)
    by_accelerate = accelerate_shard(case.transformer(device))
    ours = {depth: sharding.shard(case.transformer(device), mesh, prefetch=depth) for depth in (0, 1, 2)}
    for model in ours.values():
        sharding.prime(model)
    arms: dict[str, Arm] = {"handwritten": functools.partial(calls, handwritten)}
    arms |= {f"ours, prefetch={depth}": functools.partial(calls, model) for depth, model in ours.items()}
    arms["accelerate"] = functools.partial(calls, by_accelerate)
    arms["ours, inference mode"] = functools.partial(calls, ours[0], torch.inference_mode)
    arms["again"] = arms["handwritten"]
    refuse_unequal(arms, expected, world)
    return arms
