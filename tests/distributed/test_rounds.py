"""Calls of a request that do not depend on each other are made by different ranks, and the picture is the stock one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.census.cases import CASES
from tests.distributed.stock_rounds import Both, same
from tests.ranks import World, on_ranks


@dataclass(frozen=True)
class Row:
    """A pipeline and how wide the rounds of its denoisers are. `encoders`: those whose calls are shared out too."""

    pipeline: str
    width: int
    call: Mapping[str, Any] = field(default_factory=dict)
    encoders: tuple[str, ...] = ()
    denoisers: tuple[str, ...] = ("transformer",)

    def __str__(self) -> str:
        return " ".join([self.pipeline, *map(str, self.call)])


TEXT = ("text_encoder",)
SEPARATE = [
    Row("WanPipeline", 2, {"guidance_scale_2": 3.0}, TEXT, ("transformer", "transformer_2")),
    Row("WanImageToVideoPipeline", 2, encoders=TEXT),
    Row("WanVACEPipeline", 2, encoders=TEXT),
    Row("SkyReelsV2Pipeline", 2, encoders=TEXT),
    Row("ChronoEditPipeline", 2, encoders=TEXT),
    Row("QwenImagePipeline", 2),
    Row("QwenImageControlNetPipeline", 2),
    Row("HunyuanVideoPipeline", 2),
    Row("HunyuanVideoFramepackPipeline", 2, encoders=("image_encoder",)),
    Row("HunyuanVideo15Pipeline", 2),
    Row("HunyuanImagePipeline", 2),
    Row("ChromaPipeline", 2, encoders=TEXT),
    Row("Flux2KleinPipeline", 2),
    Row("CogView4Pipeline", 2),
    Row("CogView4ControlPipeline", 2),
    Row("OvisImagePipeline", 2),
    Row("Lumina2Pipeline", 2),
    Row("Krea2Pipeline", 2),
    Row("Cosmos3OmniPipeline", 2),
    Row("LongCatAudioDiTPipeline", 2),
    Row("HeliosPipeline", 2, encoders=TEXT),
    Row("LTX2Pipeline", 3),
    Row("LTX2ConditionPipeline", 3),
    Row("FluxPipeline", 2, {"true_cfg_scale": 3.0, "negative_prompt": "blurry"}),
    Row("FluxControlNetPipeline", 2, {"true_cfg_scale": 3.0, "negative_prompt": "blurry"}),
]
# One call at a time, since both conditions are in one batch, or there is no second one, or each call needs the last.
ONE_BY_ONE = [
    Row("StableDiffusion3Pipeline", 1),
    Row("FluxPipeline", 1),
    Row("PixArtSigmaPipeline", 1, encoders=TEXT),
    Row("CogVideoXPipeline", 1, encoders=TEXT),
    Row("Flux2KleinKVPipeline", 1),
]
FAST = {"WanPipeline", "QwenImagePipeline", "LTX2Pipeline", "StableDiffusion3Pipeline"}


def _rows(rows: list[Row]) -> list[Any]:
    return [pytest.param(row, id=str(row), marks=[] if row.pipeline in FAST else pytest.mark.slow) for row in rows]


@pytest.mark.parametrize("row", _rows(SEPARATE))
@on_ranks(2, 3)
def test_a_rank_makes_the_calls_of_its_place(world: World, row: Row) -> None:
    both = Both(world, CASES[row.pipeline], row.call)
    wanted = [both.make(seed) for seed in (3, 4)]
    in_all, rounds = both.made, both.share_out()
    for seed, want in zip((3, 4), wanted, strict=True):
        assert same(both.make(seed), want), seed
    for name in row.denoisers:
        assert set(rounds.figures.components[name].widths) == {row.width}, name
    for name in row.encoders:
        assert set(rounds.figures.components[name].widths) == {2}, name
        assert rounds.figures.components[name].shared_out, name
    # Once all is known, each rank makes its part.
    both.made = 0
    assert same(both.make(4), wanted[1])
    mine = len(range(world.rank, row.width, world.size))
    if (in_all / 2) % row.width == 0:  # LTX-2 makes one call more, by itself
        assert both.made == mine * in_all / 2 / row.width


@pytest.mark.parametrize("row", _rows(ONE_BY_ONE))
@on_ranks(2)
def test_where_each_call_needs_the_last_all_ranks_make_all(world: World, row: Row) -> None:
    both = Both(world, CASES[row.pipeline], row.call)
    wanted = [both.make(seed) for seed in (3, 4)]
    in_all, rounds = both.made, both.share_out()
    both.made = 0
    for seed, want in zip((3, 4), wanted, strict=True):
        assert same(both.make(seed), want), seed
    assert both.made == in_all
    figures = rounds.figures.components["transformer"]
    assert figures.shared_out == figures.bytes_exchanged == 0
    assert set(figures.widths) <= {1}
