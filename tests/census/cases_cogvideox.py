"""CogVideoX."""

from typing import Any

from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXDPMScheduler, CogVideoXTransformer3DModel

from tests.census.case import CLIP, NEGATIVE, PICTURE, Case
from tests.tiny.text_encoders import TEXT_DIM, t5_encoder
from tests.tiny.weights import randomise

CHANNELS = 4  # of the latents
CALL = {
    "negative_prompt": NEGATIVE,
    "height": 16,
    "width": 16,
    "num_inference_steps": 2,
    "guidance_scale": 6.0,
    "max_sequence_length": 16,
}


def _parts(scheduler: Any, in_channels: int = CHANNELS, **settings: Any) -> dict[str, Any]:
    tokenizer, text_encoder = t5_encoder(seed=1)
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=in_channels,
        out_channels=CHANNELS,
        time_embed_dim=8,
        text_embed_dim=TEXT_DIM,
        num_layers=1,
        sample_width=2,
        sample_height=2,
        sample_frames=9,
        max_text_seq_length=16,
        **settings,
    )
    vae = AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8), latent_channels=CHANNELS, layers_per_block=1, norm_num_groups=4
    )
    return {
        "tokenizer": tokenizer,
        "text_encoder": text_encoder,
        "vae": randomise(vae, seed=2),
        "transformer": randomise(transformer, seed=3),
        "scheduler": scheduler,
    }


def _small() -> dict[str, Any]:
    """As the model of two billion weights: positions are added."""
    return _parts(CogVideoXDDIMScheduler())


def _large() -> dict[str, Any]:
    """As the model of five billion weights: positions turn the queries and keys."""
    return _parts(CogVideoXDPMScheduler(), use_rotary_positional_embeddings=True)


def _image_to_video() -> dict[str, Any]:
    return _parts(CogVideoXDPMScheduler(), 2 * CHANNELS, use_rotary_positional_embeddings=True)


def _fun_control() -> dict[str, Any]:
    return _parts(CogVideoXDDIMScheduler(), 2 * CHANNELS, use_rotary_positional_embeddings=True)


CASES = [
    Case("CogVideoXPipeline", _small, CALL | {"num_frames": 9}),
    Case("CogVideoXImageToVideoPipeline", _image_to_video, CALL | {"num_frames": 9, "image": PICTURE}),
    Case("CogVideoXVideoToVideoPipeline", _large, CALL | {"video": CLIP, "strength": 0.8}),
    Case("CogVideoXFunControlPipeline", _fun_control, CALL | {"control_video": CLIP}),
]
