"""What only a library can find wrong, while it builds a component, is one line too, in every placement."""

import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from runner.config import load_config
from runner.errors import UserError
from runner.pipeline.open import open_pipeline
from runner.request import Request
from runner.world import World
from tests import ranks, tiny
from tests.ranks import on_ranks

PLACEMENTS = ("share=replicate", "share=shard", "rest=host", "rest=disk")


def opened(path: Path, *overrides: str) -> Any:
    return open_pipeline(load_config(None, [f"model.path={path}", *overrides]), World(0, 1, torch.device("cpu")))


def setting(file: str, **settings: Any) -> Callable[[Path], object]:
    def apply(root: Path) -> None:
        found = json.loads((root / file).read_text())
        (root / file).write_text(json.dumps(found | settings))

    return apply


def another_dit(root: Path) -> None:
    shutil.rmtree(root / "vae")
    shutil.copytree(root / "transformer", root / "vae")
    setting("model_index.json", vae=["diffusers", "PixArtTransformer2DModel"])(root)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "a DiT of wrong settings": (
        setting("transformer/config.json", num_layers="many"),
        r"m/transformer.*PixArt.*: Type",
    ),
    "a DiT of other sizes": (setting("transformer/config.json", num_layers=9), r"m/transformer.* missing"),
    "a VAE of nonsense": (setting("vae/config.json", block_out_channels=None), r"m/vae.*AutoencoderKL.*: TypeError"),
    "an encoder of nonsense": (setting("text_encoder/config.json", d_model="x"), r"m/text_encoder.*T5EncoderModel"),
    "an encoder of no type": (setting("text_encoder/config.json", model_type=[]), r"m/text_encoder.*T5EncoderModel"),
    "an encoder of other sizes": (
        setting("text_encoder/config.json", d_ff=96),
        r"m/text_encoder.*(mismatched|stored as)",
    ),
    "a scheduler of nonsense": (
        setting("scheduler/scheduler_config.json", num_train_timesteps="x"),
        r"m/scheduler cannot be loaded as a DPMSolverMultistepScheduler",
    ),
    "a broken vocabulary": (
        lambda root: (root / "tokenizer" / "tokenizer.json").write_text('{"version": "1.0"}'),
        r"m/tokenizer cannot be loaded as a T5Tokenizer",
    ),
    "a vocabulary of nonsense": (
        lambda root: (root / "tokenizer" / "tokenizer.json").write_text('{"added_tokens": [], "model": 3}'),
        r"m/tokenizer cannot be loaded as a T5Tokenizer",
    ),
    "a pipeline without its VAE": (
        setting("model_index.json", vae=[None, None]),
        r"vae is null, and a PixArtSigmaPipe",
    ),
    "a DiT for a VAE": (another_dit, r"m does not make a PixArtSigmaPipeline: .*block_out_channels"),
}


@pytest.mark.parametrize("broken", BROKEN)
@on_ranks(1)
def test_the_component_is_named_in_one_line(world: ranks.World, broken: str) -> None:
    apply, message = BROKEN[broken]
    model = Path(shutil.copytree(tiny.build("pixart", world.tmp_path), world.tmp_path / "m"))
    apply(model)
    for placement in PLACEMENTS:
        with pytest.raises(UserError, match=message) as raised:
            opened(model, f"placement.default.{placement}")
        told = str(raised.value)
        assert "\n" not in told and len(told) < 700, placement
        assert not any(word in told for word in ("huggingface", "internet", "offline")), placement


def test_few_open_files_are_named(tiny_root: Path) -> None:
    model = tiny.build("pixart", tiny_root)
    opened(model)  # what has to be imported is
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(UserError, match=r"Too many open files; raise the limit of open files \(ulimit -n\)"):
            opened(model)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("null", [None, [None, None]])
def test_a_pipeline_without_an_encoder_that_it_can_do_without_gives_the_stock_bits(
    tiny_root: Path, tmp_path: Path, null: object
) -> None:
    family, model = tiny.FAMILIES["sd3"], Path(shutil.copytree(tiny.build("sd3", tiny_root), tmp_path / "m"))
    setting("model_index.json", text_encoder_3=null, tokenizer_3=null)(model)
    shutil.rmtree(model / "text_encoder_3")
    shutil.rmtree(model / "tokenizer_3")
    stock = tiny.load_stock(tiny.build("sd3", tiny_root), text_encoder_3=None, tokenizer_3=None)
    expected = torch.as_tensor(tiny.call_stock(stock, family, family.prompts[0], 0)[0])
    made = opened(model)(Request(family.prompts[0], 0, family.call, output_type="np"))[0][0]
    assert torch.equal(torch.as_tensor(made), expected)
