"""Part `layout`: models of their published size on meta, sharded over worlds that do not exist, in one process."""

import time
from dataclasses import dataclass

import accelerate
import diffusers
import torch

import sharding

MODELS = {"Flux": diffusers.FluxTransformer2DModel, "Wan-14B": diffusers.WanTransformer3DModel}  # their default configs
WORLDS = (64, 512)


@dataclass(frozen=True)
class LaidOut:
    """`bound`: 1/N of the weights and a tenth of that, and 1 MiB for what no rank can share. All in bytes a rank."""

    model: str
    ranks: int
    whole: int
    at_rest: int
    outside_blocks: int
    largest_block: int
    bound: int
    seconds: float


def lay_out_all() -> list[LaidOut]:
    """For a process without a process group."""
    return [_lay_out(name, ranks) for name in MODELS for ranks in WORLDS]


def _lay_out(name: str, ranks: int) -> LaidOut:
    start = time.perf_counter()
    with accelerate.init_empty_weights(include_buffers=False):
        model = MODELS[name]()
    sharding.set_dtype(model, lambda _: torch.bfloat16)
    whole = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    with sharding.fake_world(ranks):
        found = sharding.layout(sharding.shard(model, sharding.build_mesh("cpu")))
    bound = round(whole / ranks * 1.1) + 2**20
    seconds = time.perf_counter() - start
    return LaidOut(name, ranks, whole, found.at_rest, found.outside_blocks, found.largest_block, bound, seconds)


def table(rows: list[LaidOut]) -> str:
    lines = [
        f"  {'model':12}{'ranks':>6}{'weights':>12}{'a rank at rest':>16}{'of 1/N':>8}{'+ gathered':>12}{'time':>9}"
    ]
    for row in rows:
        gathered = row.outside_blocks + 3 * row.largest_block  # with prefetch=1
        verdict = "" if row.at_rest <= row.bound else "  OVER the bound"
        lines.append(
            f"  {row.model:12}{row.ranks:6}{row.whole / 2**30:8.2f} GiB{row.at_rest / 2**20:12.1f} MiB"
            f"{row.at_rest * row.ranks / row.whole:8.3f}{gathered / 2**20:8.0f} MiB{row.seconds:7.1f} s{verdict}"
        )
    return "\n".join(lines)
