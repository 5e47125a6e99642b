"""Components that a pipeline's declared order leaves out are known by what they are."""

import pytest
from diffusers import (
    AutoencoderKL,
    FluxControlNetModel,
    FluxControlNetPipeline,
    FluxTransformer2DModel,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
    KolorsImg2ImgPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from torch import nn
from transformers import CLIPTextModel, CLIPVisionModelWithProjection, SpeechT5HifiGan, T5EncoderModel

from runner.components.stages import in_order


def stages(sequence: str | None, **modules: type[nn.Module]) -> list[tuple[str, str]]:
    bare = {name: cls.__new__(cls) for name, cls in modules.items()}
    return [(component.name, component.stage) for component in in_order(bare, sequence)]


def test_a_controlnet_denoises_before_what_takes_its_output() -> None:
    order = FluxControlNetPipeline.model_cpu_offload_seq
    assert "controlnet" not in order, "or the test says nothing"
    modules = {"vae": AutoencoderKL, "text_encoder": CLIPTextModel, "text_encoder_2": T5EncoderModel}
    denoisers = {"transformer": FluxTransformer2DModel, "controlnet": FluxControlNetModel}
    assert stages(order, **modules, **denoisers) == [
        ("text_encoder", "encode"),
        ("text_encoder_2", "encode"),
        ("controlnet", "denoise"),
        ("transformer", "denoise"),
        ("vae", "decode"),
    ]


def test_a_second_text_encoder_encodes() -> None:
    order = HunyuanVideo15Pipeline.model_cpu_offload_seq
    assert "text_encoder_2" not in order, "or the test says nothing"
    modules = {"text_encoder": T5EncoderModel, "text_encoder_2": T5EncoderModel, "vae": AutoencoderKL}
    assert stages(order, **modules, transformer=HunyuanVideo15Transformer3DModel) == [
        ("text_encoder", "encode"),
        ("text_encoder_2", "encode"),
        ("transformer", "denoise"),
        ("vae", "decode"),
    ]


def test_what_is_made_is_checked_and_sounded_last() -> None:
    order = StableDiffusionPipeline.model_cpu_offload_seq
    later = {"safety_checker": StableDiffusionSafetyChecker, "vocoder": SpeechT5HifiGan}
    found = stages(order, **later, unet=UNet2DConditionModel, text_encoder=CLIPTextModel, vae=AutoencoderKL)
    assert found == [
        ("text_encoder", "encode"),
        ("unet", "denoise"),
        ("vae", "decode"),
        ("safety_checker", "decode"),
        ("vocoder", "decode"),
    ]


@pytest.mark.parametrize("order", [None, "", KolorsImg2ImgPipeline.model_cpu_offload_seq])
def test_without_an_order_and_with_a_misspelt_one(order: str | None) -> None:
    modules = {"vae": AutoencoderKL, "unet": UNet2DConditionModel, "image_encoder": CLIPVisionModelWithProjection}
    found = stages(order, **modules, text_encoder=CLIPTextModel)
    encoders = {name for name, stage in found if stage == "encode"}
    assert encoders == {"text_encoder", "image_encoder"} and found[2:] == [("unet", "denoise"), ("vae", "decode")]
