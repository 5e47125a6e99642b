"""Guidance x context on four processes or more, as counted work: how much of one rank's each rank of the team computes.

Work is what the blocks are called with: tokens, summed over the forwards. It is counted and not timed: so it needs no
core for each rank, and nothing that runs beside it can disturb it.
"""

from typing import Any

import torch

from bench.guidance_arms import latents_of, wan
from bench.ratios import note
from runner.calls.lockstep import Lockstep
from runner.components.component import Component
from runner.components.context import Context
from runner.rounds.round import Shared
from runner.rounds.rounds import Rounds
from runner.world import World


def run(world: World, scale: float) -> dict[str, Any]:
    """The figures of the part; the pictures are compared before anything is counted. Collective."""
    if world.size < 4 or world.size % 2:
        raise SystemExit("--part together takes four ranks, or another even number above")
    world = world.in_teams(2, world.size // 2)
    team, stock = world.team, wan()
    work: list[int] = []

    def count(block: Any, args: Any, kwargs: Any) -> None:
        hidden_states = args[0] if args else kwargs["hidden_states"]
        work.append(hidden_states.shape[1])

    count.__module__ = "runner"  # calls with a stranger's hooks inside are not shared out
    with torch.inference_mode():
        stock.transformer.blocks[-1].register_forward_pre_hook(count, with_kwargs=True)  # past the split
        whole = latents_of(stock)
        alone, work[:] = sum(work), []
        assert team.context_mesh is not None
        Context(stock.transformer, team.context_mesh)
        component = Component("transformer", stock.transformer, "denoise")
        shared = Shared(
            Lockstep(team.control),
            world.device,
            team.control,
            team.guidance_group,
            sharded=frozenset({component.name}),
        )
        rounds = Rounds([component], shared, stock)
        for _ in range(2):  # the first request tells what calls there are
            work[:] = []
            with shared.lockstep.request(), rounds.request():
                made = latents_of(stock)
    differs = float((made - whole).norm() / whole.norm())
    if differs > 1e-5:
        raise SystemExit(f"latents that ranks make together differ by {differs:.2g}; not counted")
    shares = world.gather(sum(work) / alone)
    forwards = world.gather(len(work))
    if world.rank == 0:
        title = f"guidance 2 x context {team.context}, wan, 768 tokens"
        told = ", ".join(f"{share:.3f} in {number} forwards" for share, number in zip(shares, forwards, strict=True))
        print(f"\n{title}: forwards x tokens of each rank, of one rank alone: {told}", flush=True)
        note(f"{title}: forwards x tokens a rank", [max(shares)], 1 / world.size)
    return {"forwards x tokens": shares, "forwards": forwards}
