"""The look of the default adapter, and the adapter that ships."""

from pathlib import Path

import torch

from lora import MergedWeights, edits_of, read_adapter
from runner.config import RunConfig
from runner.pipeline.open import open_pipeline
from runner.request import Request
from runner.world import World
from scripts.emoji.concepts import STYLES
from scripts.emoji.line_art import INK, SOURCE, line_art

SHIPPED = Path(__file__).resolve().parents[2] / "models/emoji-dit-lora-ink"
CALL = {"height": 64, "width": 64, "num_inference_steps": 8, "guidance_scale": 3.0, "use_resolution_binning": False}


def test_line_art_is_ink_around_and_within_white_shapes() -> None:
    icons = torch.zeros(len(STYLES), 1, 128, 128, 4, dtype=torch.uint8)
    icons[SOURCE, 0, 32:96, 32:96] = torch.tensor((255, 0, 0, 255), dtype=torch.uint8)
    icons[SOURCE, 0, 32:96, 64:96, :3] = torch.tensor((0, 0, 255), dtype=torch.uint8)
    drawn = line_art(icons)
    assert drawn.shape == icons.shape and drawn.dtype == torch.uint8
    assert all(torch.equal(style, drawn[0]) for style in drawn)
    picture, ink = drawn[0, 0], torch.tensor(INK).mul(255).round().byte()
    for y, x in ((64, 32), (32, 48), (64, 64), (95, 80)):
        assert torch.equal(picture[y, x, :3], ink) and picture[y, x, 3] == 255, "outline, and where colours meet"
    assert picture[48, 48].tolist() == picture[48, 80].tolist() == [255] * 4, "white within"
    assert picture[8, 8, 3] == 0, "clear outside"


def test_the_shipped_adapter_takes_the_colour_out_of_things() -> None:
    pipeline = open_pipeline(RunConfig(), World(0, 1, torch.device("cpu")))
    assert (SHIPPED / "adapter_model.safetensors").stat().st_size <= 1_000_000
    adapter = read_adapter(SHIPPED, {"transformer": pipeline.stock.transformer})
    assert {change.rank for change in adapter.components["transformer"].values()} == {16}
    place = MergedWeights(pipeline.stock.transformer)
    saturation = {}
    for weight in (0.0, 1.0):
        place.set(edits_of("transformer", {"ink": adapter}, {"ink": weight}))
        picture = torch.from_numpy(pipeline(Request("a red apple", 0, CALL, output_type="np"))[0][0])
        saturation[weight] = (picture.amax(dim=2) - picture.amin(dim=2)).mean().item()
    assert saturation[1.0] < 0.25 * saturation[0.0]
