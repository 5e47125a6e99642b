"""What ranks that make one request together save, against each of them making it alone, in one interleaved run.

  OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node 2 scripts/bench_team.py [--part context]

Parts:
  context       a call of Flux and of Wan, of 1,024 tokens of the picture, whose tokens the ranks share out; and how
                many floating-point operations each rank is left with, which no other program disturbs
  guidance      a step of Wan, of 768 tokens, with two calls that the ranks share out; what a round costs the host
  tiles         a picture decoded in tiles that the ranks share out
  together      on four ranks or more: guidance x context, as work that is counted, forwards x tokens of each rank

Every rank computes in both arms, so that the cores are as busy in both. Outputs are compared before anything is timed.
Each round runs every arm once, in random order; ratios are paired within a round. Below 1 the left one is faster. Leave
a core for each rank free: ranks wait for one another, so that whatever else runs slows down all of them; on a busy
machine believe the processor's time, and of that the `quiet` ratio.
"""

import json
from dataclasses import asdict
from typing import Any

import diffusers
from bench import context_arms, guidance_arms, tile_arms, together_arms
from bench.parts import parse

from runner.world import joined_world

PARTS = {
    "context": context_arms.run,
    "guidance": guidance_arms.run,
    "tiles": tile_arms.run,
    "together": together_arms.run,
}


def main() -> None:
    options = parse(__doc__, PARTS)
    diffusers.utils.logging.set_verbosity_error()
    figures: dict[str, Any] = {}
    with joined_world() as world:
        for part in options.part or [name for name in PARTS if name != "together" or world.size >= 4]:
            figures[part] = PARTS[part](world, options.rounds)
        if world.rank == 0 and options.json:
            options.json.write_text(json.dumps(figures, indent=1, default=asdict) + "\n")


if __name__ == "__main__":
    main()
