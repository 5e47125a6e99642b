"""Kandinsky 5, of pictures and videos, and 6: videos with sound, and their enlargement."""

from typing import Any

from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    Kandinsky5Transformer3DModel,
    Kandinsky6SRTransformer3DModel,
    Kandinsky6SRVAE,
    Kandinsky6Transformer3DModel,
    MMAudioVAE,
    MMAudioVocoder,
    PiflowScheduler,
)
from transformers import Qwen2_5_VLProcessor

from tests.census.case import CLIP, NEGATIVE, PICTURE, Case
from tests.census.parts import hunyuan_video_vae, qwen25_vl, qwen_processor
from tests.tiny.text_encoders import TEXT_DIM, clip_encoder
from tests.tiny.weights import randomise

CHANNELS = 4  # of the latents
NEEDS = ("torchvision",)
SIZES: dict[str, Any] = {
    "in_visual_dim": CHANNELS,
    "out_visual_dim": CHANNELS,
    "in_text_dim": TEXT_DIM,
    "in_text_dim2": TEXT_DIM,
    "time_dim": 8,
    "model_dim": 16,
    "ff_dim": 16,
    "num_text_blocks": 1,
    "num_visual_blocks": 1,
    "axes_dims": (2, 2, 4),
}  # of both transformers


def _encoders() -> dict[str, Any]:
    _, text_encoder = qwen25_vl(seed=1)
    tokenizer_2, text_encoder_2 = clip_encoder(seed=2)
    return {
        "text_encoder": text_encoder,
        "tokenizer": qwen_processor(),
        "text_encoder_2": text_encoder_2,
        "tokenizer_2": tokenizer_2,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=5.0),
    }


def _kandinsky5(vae: Any, *, visual_cond: bool = True) -> dict[str, Any]:
    transformer = Kandinsky5Transformer3DModel(
        **SIZES,
        visual_cond=visual_cond,
    )
    return _encoders() | {"vae": vae, "transformer": randomise(transformer, seed=3)}


def videos() -> dict[str, Any]:
    return _kandinsky5(hunyuan_video_vae(seed=4, channels=CHANNELS))


def pictures(*, visual_cond: bool = False) -> dict[str, Any]:
    """Of a million pixels, the least that the pipelines take, each an eighth as high and wide in the latents: no
    attention in the autoencoder."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4,) * 4,
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=2,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )
    return _kandinsky5(randomise(vae, seed=4), visual_cond=visual_cond)


def edited() -> dict[str, Any]:
    return pictures(visual_cond=True)


def sounding() -> dict[str, Any]:
    transformer = Kandinsky6Transformer3DModel(
        **SIZES,
        in_audio_dim=4,
        out_audio_dim=4,
        axes_dims_a=(8,),
        text_token_padding=True,
        ca_rope=True,
        cross_gates=True,
        fix_modulation=True,
        visual_token_type_num_embeddings=2,
    )
    audio_vae = MMAudioVAE(mel_bins=8, latent_channels=4, hidden_channels=8, layers_per_block=1)
    vocoder = MMAudioVocoder(
        num_mels=8,
        upsample_initial_channel=16,
        upsample_rates=(4, 2),
        upsample_kernel_sizes=(8, 4),
        resblock_kernel_sizes=(3,),
        resblock_dilation_sizes=((1, 3, 5),),
    )
    return _encoders() | {
        "tokenizer": qwen_processor(Qwen2_5_VLProcessor),
        "transformer": randomise(transformer, seed=3),
        "vae": hunyuan_video_vae(seed=4, channels=CHANNELS),
        "audio_vae": randomise(audio_vae, seed=5),
        "vocoder": randomise(vocoder, seed=6),
    }


def enlarging() -> dict[str, Any]:
    transformer = Kandinsky6SRTransformer3DModel(
        in_visual_dim=CHANNELS,
        out_visual_dim=10 * CHANNELS,  # the scheduler's grid of ten predictions
        time_dim=8,
        model_dim=16,
        ff_dim=16,
        num_visual_blocks=1,
        axes_dims=(4, 6, 6),
        tile_sizes=((128, 128),),
    )
    vae = Kandinsky6SRVAE(
        latent_channels=CHANNELS,
        encoder_block_out_channels=(8,) * 5,
        decoder_block_out_channels=(8,) * 5,
        layers_per_block=1,
    )
    return {
        "transformer": randomise(transformer, seed=1),
        "vae": randomise(vae, seed=2),
        "scheduler": PiflowScheduler(num_policy_substeps=4),
    }


CALL = {"negative_prompt": NEGATIVE, "num_inference_steps": 2, "guidance_scale": 5.0, "max_sequence_length": 512}
VIDEO = CALL | {"height": 32, "width": 32, "num_frames": 5}
LARGE = CALL | {"height": 640, "width": 1408, "guidance_scale": 1.0}

CASES = [
    Case("Kandinsky5T2VPipeline", videos, VIDEO, needs=NEEDS),
    Case("Kandinsky5I2VPipeline", videos, VIDEO | {"num_frames": 17, "image": PICTURE}, needs=NEEDS),
    Case("Kandinsky5T2IPipeline", pictures, LARGE, needs=NEEDS),
    Case("Kandinsky5I2IPipeline", edited, LARGE | {"image": PICTURE}, needs=NEEDS),
    Case("Kandinsky6TI2VAPipeline", sounding, VIDEO | {"image": PICTURE}, needs=NEEDS),
    Case(
        "Kandinsky6SRPipeline",
        enlarging,
        {"video": CLIP, "resolution_scale": 2, "num_inference_steps": 2},
        prompt=None,
    ),
]
