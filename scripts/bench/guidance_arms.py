"""Guidance over the ranks of a team: a step of Wan, 768 tokens and two calls, shared out or all made by each rank; and
what a round costs the host on a model that computes next to nothing, alone and with what ranks exchange.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from torch import nn

from bench.paired import measure, refuse_unequal, report
from runner.calls.lockstep import Lockstep
from runner.components.component import Component
from runner.rounds.exchange import Parcel, exchange
from runner.rounds.round import Shared
from runner.rounds.rounds import Rounds
from runner.rounds.signature import Spec
from runner.world import World
from weights.agreement import gather_int

TEXT = 128  # the width of a prompt's embeddings
ROUNDS = 400
HEADS = 6
LATENTS = (1, 16, 3, 32, 32)


def run(world: World, rounds: float) -> dict[str, Any]:
    """The figures of the part."""
    team = world.in_teams(world.size, 1)
    denoise = _denoiser(team)
    arms = {"every rank makes all": denoise(False), "shared out": denoise(True)}
    refuse_unequal(arms, denoise(False)(), world)
    label = f"guidance over {world.size} ranks"
    times = measure(arms, max(3, round(8 * rounds)), world, warmup=1)
    figures = report(times, {label: ("shared out", "every rank makes all")}, world, "a step", {label: 0.55})
    figures["round_ms"] = {
        "alone": _round_costs(None),
        "exchanged": _round_costs(team),
        "collectives": _collectives_cost(team),
    }
    if world.rank == 0:
        print(
            "  a round of two calls costs the host {alone:.3f} ms alone; {exchanged:.3f} exchanged, of which the "
            "collectives take {collectives:.3f}".format(**figures["round_ms"])
        )
    return figures


def wan() -> WanPipeline:
    """A small one, of random weights; its call is given the embeddings of its prompts."""
    torch.manual_seed(0)
    transformer = WanTransformer3DModel(
        num_attention_heads=HEADS,
        attention_head_dim=64,
        text_dim=TEXT,
        ffn_dim=4 * 64 * HEADS,
        num_layers=4,
    )
    stock = WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        transformer=transformer,
    )
    stock.set_progress_bar_config(disable=True)
    return stock


def latents_of(stock: WanPipeline) -> torch.Tensor:
    """Of a video of 768 tokens: four steps of two calls each."""
    prompts = torch.randn(2, 1, 64, TEXT, generator=torch.Generator().manual_seed(1))
    return stock(
        prompt_embeds=prompts[0],
        negative_prompt_embeds=prompts[1],
        height=256,
        width=256,
        num_frames=9,
        num_inference_steps=4,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    ).frames


def _denoiser(world: World) -> Callable[[bool], Callable[[], torch.Tensor]]:
    stock = wan()
    rounds = Rounds([Component("transformer", stock.transformer, "denoise")], _over(world), stock)

    def denoise(shares: bool) -> Callable[[], torch.Tensor]:
        def call() -> torch.Tensor:
            with torch.inference_mode(), rounds.request() if shares else nullcontext():
                return latents_of(stock)

        return call

    return denoise


def _over(world: World) -> Shared:
    team = world.team
    return Shared(Lockstep(team.control), world.device, team.control, team.guidance_group)


class _Nothing(nn.Module):
    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor) -> tuple[torch.Tensor]:
        return (hidden_states * timestep,)


def _round_costs(world: World | None) -> float:
    """Milliseconds of this thread's processor's time for a round of two calls, beside what the calls take without
    rounds; the least of five times."""
    alone = Shared(Lockstep(None), torch.device("cpu"), moving=frozenset({"model"}))
    model = _Nothing()
    hidden, timestep = torch.randn(*LATENTS), torch.ones(1)

    def steps() -> float:
        latents, start = hidden, time.thread_time()
        for _ in range(ROUNDS):
            first = model(latents, timestep=timestep)[0]
            second = model(latents, timestep=timestep)[0]
            latents = second + 3.0 * (first - second)  # what the next step is called with, so that each ends a round
        return (time.thread_time() - start) * 1000 / ROUNDS

    with torch.inference_mode():
        plain = min(steps() for _ in range(5))
        rounds = Rounds([Component("model", model, "denoise")], alone if world is None else _over(world))
        with rounds.request():
            steps()
        with rounds.request():
            return min(steps() for _ in range(5)) - plain


def _collectives_cost(world: World) -> float:
    """The same for nothing but what the ranks of that round say and send: one number each, and each one's result."""
    latents = torch.randn(*LATENTS)
    parcels = [(owner, latents if owner == world.rank else None) for owner in range(2)]

    def steps() -> float:
        start = time.thread_time()
        for _ in range(ROUNDS):
            gather_int(1, world.team.control)
            exchange([Parcel(owner, Spec.of(latents), value) for owner, value in parcels], world.team.guidance_group)
        return (time.thread_time() - start) * 1000 / ROUNDS

    return min(steps() for _ in range(5))
