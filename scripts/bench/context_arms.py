"""Part `context`: a call of a denoiser whose tokens the ranks share out, against the whole call on each of them.

Every rank computes in both arms, so that the cores are as busy. Below 0.5 nothing can come by two ranks; what is above
is the exchange of tokens and heads in each attention, and what each rank does by itself (the embeddings, the
modulation).
"""

import functools
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bench.cases import Case, flux_config
from bench.paired import Arm, measure, report
from bench.ratios import note
from runner.components.context import Context
from runner.world import World

AIM = {2: 0.62}  # of a call's time, by the ranks
_FLUX = Case(
    "flux",
    heads=6,
    head_dim=64,
    double_blocks=2,
    single_blocks=4,
    height=512,
    width=512,
    text_tokens=64,
    steps=1,
    rounds=12,
)


def run(world: World, scale: float) -> dict[str, Any]:
    """All ranks are one team. Collective."""
    world = world.in_teams(1, world.size)
    mesh = world.team.context_mesh
    if mesh is None:
        raise SystemExit("--part context takes two ranks or more")
    figures: dict[str, Any] = {}
    for name, build in {"flux, 1,024 + 64 tokens": _flux, "wan, 1,024 tokens": _wan}.items():
        module, inputs = build(world.device)
        context = Context(module, mesh)
        arms = _arms(context, functools.partial(_called, module, inputs))
        left = world.gather(_operations(arms["shared"]) / _operations(arms["whole"]))
        title = f"context={context.size}, {name}"
        if world.rank == 0:
            operations = ", ".join(f"{one:.3f}" for one in left)
            print(f"\n{title}: of the operations of a whole call, each rank is left with {operations}", flush=True)
            note(f"{title}: operations a rank", [max(left)])
        aims = {"shared / whole": AIM[context.size]} if context.size in AIM else {}
        ratios = {"shared / whole": ("shared", "whole"), "again / whole (noise)": ("again", "whole")}
        figures[name] = report(measure(arms, _rounds(scale), world), ratios, world, title, aims)
        figures[name]["operations"] = left
    return figures


def _called(module: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
    return module(**inputs)[0]


def _operations(arm: Arm) -> int:
    with FlopCounterMode(display=False) as counter:
        arm()
    return counter.get_total_flops()


def _rounds(scale: float) -> int:
    return max(1, round(_FLUX.rounds * scale))


def _arms(context: Context, call: Callable[[], torch.Tensor]) -> dict[str, Arm]:
    def whole() -> torch.Tensor:
        with torch.no_grad(), context.whole():
            return call()

    def shared() -> torch.Tensor:
        with torch.no_grad():
            return call()

    differs = float((shared() - whole()).norm() / whole().norm())
    if differs > 1e-6:
        raise SystemExit(f"a call whose tokens are shared out differs by {differs:.2g}; not timed")
    return {"whole": whole, "shared": shared, "again": whole}


def _flux(device: torch.device) -> tuple[nn.Module, dict[str, Any]]:
    torch.manual_seed(0)
    config = flux_config(_FLUX.heads, _FLUX.head_dim, _FLUX.double_blocks, _FLUX.single_blocks, 32)
    module = diffusers.FluxTransformer2DModel(**config, in_channels=16).eval().to(device)
    return module, _FLUX.inputs(device)


def _wan(device: torch.device) -> tuple[nn.Module, dict[str, Any]]:
    """Four latent frames of 32 x 32, 2 x 2 of them a token."""
    torch.manual_seed(0)
    module = diffusers.WanTransformer3DModel(
        num_attention_heads=6, attention_head_dim=64, text_dim=32, freq_dim=64, ffn_dim=1536, num_layers=6
    )
    inputs = {
        "hidden_states": torch.randn(1, 16, 4, 32, 32, device=device),
        "encoder_hidden_states": torch.randn(1, 64, 32, device=device),
        "timestep": torch.tensor([500.0], device=device),
        "return_dict": False,
    }
    return module.eval().to(device), inputs
