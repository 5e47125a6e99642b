"""An exported directory, and the one that ships, is what stock diffusers loads."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, PixArtSigmaPipeline

from scripts.emoji.autoencoder import build_autoencoder, normalise_latents
from scripts.emoji.concepts import BACKGROUNDS
from scripts.emoji.denoiser import build_denoiser
from scripts.emoji.export import export
from scripts.emoji.recognition import background_colours

SHIPPED = Path(__file__).resolve().parents[2] / "models/emoji-dit"
MOST_BYTES = 15e6


def draw(pipeline: DiffusionPipeline, prompt: str, *, seed: int = 0) -> torch.Tensor:
    """One picture, (1, 3, 64, 64) in [-1, 1]."""
    pipeline.set_progress_bar_config(disable=True)
    return (
        pipeline(
            prompt,
            num_inference_steps=8,
            guidance_scale=3.0,
            generator=torch.Generator().manual_seed(seed),
            use_resolution_binning=False,
            clean_caption=False,
            output_type="pt",
        ).images
        * 2
        - 1
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("export") / "model"
    directory.mkdir()
    (directory / "README.md").write_text("a card")
    export(directory, build_autoencoder(), build_denoiser())
    return directory


def test_stock_diffusers_loads_an_export_and_draws_with_it(exported: Path) -> None:
    pipeline = DiffusionPipeline.from_pretrained(exported)
    assert type(pipeline) is PixArtSigmaPipeline
    assert draw(pipeline, "a cat").shape == (1, 3, 64, 64)


def test_an_export_leaves_other_files_and_no_partial_directory(exported: Path) -> None:
    assert (exported / "README.md").read_text() == "a card"
    assert [path.name for path in exported.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("where", ["exported", "shipped"])
def test_the_tokenizer_class_is_one_that_every_transformers_knows(exported: Path, where: str) -> None:
    directory = exported if where == "exported" else SHIPPED
    assert json.loads((directory / "model_index.json").read_text())["tokenizer"][1] == "PreTrainedTokenizerFast"
    config = json.loads((directory / "tokenizer/tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"


@torch.no_grad()
def test_normalising_latents_changes_their_statistics_and_nothing_else() -> None:
    torch.manual_seed(0)
    model = build_autoencoder().eval()
    pictures = torch.rand(8, 3, 64, 64) * 2 - 1
    before = model.encode(pictures).latent_dist
    decoded = model.decode(before.mean).sample
    normalise_latents(model, pictures)
    after = model.encode(pictures).latent_dist
    torch.testing.assert_close(after.mean.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(after.mean.std(dim=(0, 2, 3)), torch.ones(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(model.decode(after.mean).sample, decoded, atol=1e-4, rtol=1e-4)
    scale = (before.mean - before.mean.mean(dim=(0, 2, 3), keepdim=True)).std(dim=(0, 2, 3))
    torch.testing.assert_close(after.std * scale[:, None, None], before.std, atol=1e-4, rtol=1e-3)


def test_the_shipped_model_is_small_and_holds_no_pickles() -> None:
    files = [path for path in SHIPPED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < MOST_BYTES
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".md", ".png", ".txt"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_shipped_model_paints_the_background_it_is_asked_for(dtype: torch.dtype) -> None:
    pipeline = DiffusionPipeline.from_pretrained(SHIPPED, dtype=dtype)
    picture = draw(pipeline, "a penguin on a pink background").float()
    assert background_colours(picture).item() == list(BACKGROUNDS).index("pink")
