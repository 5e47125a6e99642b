"""PixArt and Sana, which share their way to call: guided in one batch, by captions that may be cleaned."""

from typing import Any

from diffusers import (
    AutoencoderDC,
    DPMSolverMultistepScheduler,
    PixArtTransformer2DModel,
    SanaControlNetModel,
    SanaTransformer2DModel,
    SCMScheduler,
)

from tests.census.case import NEGATIVE, OTHER, PICTURE, Case
from tests.tiny.image_vae import image_vae
from tests.tiny.text_encoders import gemma2_encoder, t5_encoder
from tests.tiny.weights import randomise

CALL = {"height": 16, "width": 16, "num_inference_steps": 2, "guidance_scale": 4.5, "max_sequence_length": 16}
CALL |= {"use_resolution_binning": False, "clean_caption": False}
GUIDED = CALL | {"negative_prompt": NEGATIVE}
SANA = {"height": 32, "width": 32, "complex_human_instruction": None}
SANA_SIZES = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 8,
    "cross_attention_dim": 16,
    "caption_channels": 32,
    "sample_size": 4,
}


def pixart() -> dict[str, Any]:
    tokenizer, text_encoder = t5_encoder(seed=1)
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=16,
        sample_size=8,
        use_additional_conditions=False,
        caption_channels=32,
    )
    return {
        "tokenizer": tokenizer,
        "text_encoder": text_encoder,
        "vae": image_vae(seed=2),
        "transformer": randomise(transformer, seed=3),
        "scheduler": DPMSolverMultistepScheduler(beta_end=0.005),  # see tests/tiny/pixart.py
    }


def sana(layers: int = 2, **config: Any) -> dict[str, Any]:
    tokenizer, text_encoder = gemma2_encoder(seed=1)
    blocks, widths = ("ResBlock", "ResBlock", "ResBlock", "EfficientViTBlock"), (4, 4, 4, 4)
    vae = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        encoder_layers_per_block=(1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
        encoder_qkv_multiscales=((), (), (), (5,)),
        decoder_qkv_multiscales=((), (), (), (5,)),
    )
    return {
        "tokenizer": tokenizer,
        "text_encoder": text_encoder,
        "vae": randomise(vae, seed=2),
        "transformer": randomise(SanaTransformer2DModel(num_layers=layers, **SANA_SIZES, **config), seed=3),
        "scheduler": DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3),
    }


def sana_controlnet() -> dict[str, Any]:
    return sana() | {"controlnet": randomise(SanaControlNetModel(num_layers=1, **SANA_SIZES), seed=4)}


def sana_sprint() -> dict[str, Any]:
    return sana(guidance_embeds=True) | {"scheduler": SCMScheduler(prediction_type="trigflow", sigma_data=0.5)}


CASES = [
    Case("PixArtAlphaPipeline", pixart, GUIDED),
    Case("PixArtSigmaPipeline", pixart, GUIDED),
    Case("PixArtSigmaPAGPipeline", pixart, GUIDED | {"pag_scale": 2.0}),
    Case("SanaPipeline", sana, GUIDED | SANA),
    Case("SanaPAGPipeline", sana, GUIDED | SANA | {"pag_scale": 2.0}),
    Case("SanaControlNetPipeline", sana_controlnet, GUIDED | SANA | {"control_image": OTHER}),
    Case("SanaSprintPipeline", sana_sprint, CALL | SANA),
    Case("SanaSprintImg2ImgPipeline", sana_sprint, CALL | SANA | {"image": PICTURE, "strength": 0.6}),
]
