"""Tiled decoding over the ranks of a team: a picture of 512 x 512 in tiles of 256, shared out or all by each rank."""

from typing import Any

import torch
from diffusers import AutoencoderKL

from bench.paired import Arm, measure, refuse_unequal, report
from runner.calls.lockstep import Lockstep
from runner.components.component import Component
from runner.rounds.tiles import Tiles
from runner.world import World


def run(world: World, rounds: float) -> dict[str, Any]:
    """The figures of the part. Collective."""
    team = world.in_teams(world.size, 1)
    latents = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0))

    def arm(vae: AutoencoderKL) -> Arm:
        def decode() -> torch.Tensor:
            with torch.inference_mode():
                return vae.decode(latents, return_dict=False)[0]

        return decode

    alone, shared = _vae(), _vae()
    Tiles([Component("vae", shared, "decode")], team.team, Lockstep(team.team.control), team.device)
    arms = {"every rank decodes all": arm(alone), "shared out": arm(shared)}
    refuse_unequal(arms, arm(alone)(), world)
    label = f"tiles over {world.size} ranks"
    times = measure(arms, max(3, round(8 * rounds)), world, warmup=1)
    return report(times, {label: ("shared out", "every rank decodes all")}, world, "a picture decoded in tiles")


def _vae() -> AutoencoderKL:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 32, 32),
        norm_num_groups=8,
        sample_size=256,
    ).eval()
    vae.enable_tiling()
    return vae
