"""Another pipeline over the directory's components, and components from elsewhere: what is taken, what is refused."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from diffusers import (
    AutoencoderTiny,
    FluxControlNetModel,
    FluxPipeline,
    FluxTransformer2DModel,
    UniPCMultistepScheduler,
)
from transformers import CLIPImageProcessor, T5Config, T5EncoderModel, T5ForConditionalGeneration

from runner.components.directory import Directory, directory_of
from runner.components.identity import identity
from runner.config import load_config
from runner.errors import UserError
from runner.output.recipe import differences
from tests import tiny


@pytest.fixture
def flux(tiny_root: Path) -> Path:
    return tiny.build("flux", tiny_root)


def chosen(path: Path, *words: str) -> Directory:
    return directory_of(load_config(None, [f"model.path={path}", *words]))


def controlnet(path: Path, folder: Path) -> Path:
    transformer = FluxTransformer2DModel.from_pretrained(path / "transformer")
    FluxControlNetModel.from_transformer(
        transformer,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        load_weights_from_transformer=False,
    ).save_pretrained(folder)
    return folder


def test_the_constructor_of_another_class_decides_what_is_taken(flux: Path, tiny_root: Path) -> None:
    stock = FluxPipeline.from_pretrained(flux)
    directory = chosen(flux, "model.pipeline=FluxImg2ImgPipeline")
    assert directory.pipeline.__name__ == "FluxImg2ImgPipeline"
    parts = {name: type(part) for name, part in stock.components.items() if part is not None}
    assert directory.classes == parts
    clips = chosen(tiny.build("wan22", tiny_root), "model.pipeline=WanVideoToVideoPipeline")
    assert set(clips.left_out) == {"transformer_2", "boundary_ratio", "expand_timesteps"}
    assert set(clips.classes) == {"tokenizer", "text_encoder", "transformer", "vae", "scheduler"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.pipeline=FluxImg2Img"], r"diffusers has no FluxImg2Img; these fit: .*FluxImg2ImgPipeline"),
        (["model.pipeline=FluxTransformer2DModel"], r"diffusers has no FluxTransformer2DModel; these fit"),
        (
            ["model.pipeline=ChromaPipeline"],
            r"takes a ChromaTransformer2DModel as its transformer, and that of .*flux is",
        ),
        (["model.pipeline=WanPipeline"], r"takes a AutoencoderKLWan as its vae|takes a WanTransformer3DModel"),
        (
            ["model.pipeline=FluxControlNetPipeline"],
            r"lists no controlnet, which a FluxControlNetPipeline needs; components\.controlnet\.path=FOLDER gives it",
        ),
        (
            ["components.controlnet.path=x"],
            r"components\.controlnet: a FluxPipeline has no such component; it has .*transformer",
        ),
        (["components.vae.path=nowhere"], r"components\.vae\.path: no folder nowhere \(from /"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_does(flux: Path, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        chosen(flux, *words)
    assert "\n" not in str(raised.value)


def test_pipelines_that_fit_are_those_that_stock_puts_together(flux: Path) -> None:
    with pytest.raises(UserError) as raised:
        chosen(flux, "model.pipeline=Flux")
    stock: Any = FluxPipeline.from_pretrained(flux)
    told = str(raised.value).partition("these fit: ")[2].split(", ")
    ready = [name for name in told if "(" not in name]
    assert {"FluxPipeline", "FluxInpaintPipeline", "FluxControlPipeline", "VisualClozePipeline"} <= set(ready)
    assert "FluxControlNetPipeline (with components.controlnet.path)" in told
    import diffusers

    for name in ready:
        assert getattr(diffusers, name).from_pipe(stock).transformer is stock.transformer


def test_a_whole_model_is_no_component(flux: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is a whole model; the component's own folder is .*flux/vae"):
        chosen(flux, f"components.vae.path={flux}")


def test_a_component_of_another_class_is_refused_with_the_one_that_is_taken(flux: Path, tiny_root: Path) -> None:
    wan = tiny.build("wan", tiny_root)
    with pytest.raises(
        UserError, match=r"holds a WanTransformer3DModel, where a FluxPipeline takes a FluxTransformer2D"
    ):
        chosen(flux, f"components.transformer.path={wan / 'transformer'}")
    with pytest.raises(UserError, match=r"holds a UMT5EncoderModel, where a FluxPipeline takes a T5EncoderModel"):
        chosen(flux, f"components.text_encoder_2.path={wan / 'text_encoder'}")


def test_a_tiny_autoencoder_stands_in_for_the_one_that_is_annotated(flux: Path, tmp_path: Path) -> None:
    AutoencoderTiny(
        encoder_block_out_channels=(8,),
        decoder_block_out_channels=(8,),
        num_encoder_blocks=(1,),
        num_decoder_blocks=(1,),
    ).save_pretrained(tmp_path)
    assert chosen(flux, f"components.vae.path={tmp_path}").classes["vae"] is AutoencoderTiny


def test_the_encoder_of_a_whole_t5_is_the_class_that_the_model_lists(flux: Path, tmp_path: Path) -> None:
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 1, "vocab_size": 11}
    T5ForConditionalGeneration(T5Config(**sizes)).save_pretrained(tmp_path)
    assert chosen(flux, f"components.text_encoder_2.path={tmp_path}").classes["text_encoder_2"] is T5EncoderModel


def test_a_component_that_the_model_does_not_list_is_added(flux: Path, tmp_path: Path) -> None:
    CLIPImageProcessor().save_pretrained(tmp_path)
    directory = chosen(flux, f"components.feature_extractor.path={tmp_path}")
    assert directory.classes["feature_extractor"] is CLIPImageProcessor
    assert "feature_extractor" not in directory.settings


def test_a_scheduler_of_another_class_is_the_one_that_its_file_names(flux: Path, tmp_path: Path) -> None:
    UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction").save_pretrained(tmp_path)
    assert chosen(flux, f"components.scheduler.path={tmp_path}").classes["scheduler"] is UniPCMultistepScheduler


def test_what_comes_from_elsewhere_counts_by_its_content(flux: Path, tmp_path: Path) -> None:
    def of(*words: str) -> dict[str, Any]:
        return identity(chosen(flux, *words), "cpu")

    copied = Path(shutil.copytree(flux / "vae", tmp_path / "copied"))
    assert of(f"components.vae.path={copied}") == of(), "the same files, elsewhere"
    assert of("model.pipeline=FluxPipeline") == of(), "the default, spelled out"
    changed = differences(of(), of("model.pipeline=FluxImg2ImgPipeline"))
    assert changed == ["pipeline: FluxPipeline -> FluxImg2ImgPipeline"]
    other = controlnet(flux, tmp_path / "controlnet")
    words = ["model.pipeline=FluxControlNetPipeline", f"components.controlnet.path={other}"]
    before = of(*words)
    config = other / "config.json"
    config.write_text(config.read_text().replace('"guidance_embeds": true', '"guidance_embeds":  true'))
    assert [line.partition(":")[0] for line in differences(before, of(*words))] == ["controlnet"]
