"""Models of worlds: Cosmos 3, one transformer for words, clips and sound; Sana-WM, with a camera that moves."""

from typing import Any

from diffusers import (
    Cosmos3AVAEAudioTokenizer,
    Cosmos3OmniTransformer,
    FlowMatchEulerDiscreteScheduler,
    SanaWMTransformer3DModel,
    UniPCMultistepScheduler,
)

from tests.census.case import NEGATIVE, PICTURE, Case
from tests.census.cases_ltx2 import video_vae
from tests.census.parts import chat_tokenizer, wan_vae
from tests.tiny.text_encoders import TEXT_DIM, gemma2_encoder
from tests.tiny.weights import randomise

CHANNELS = 4  # of the latents
SOUND_CHANNELS = 4


def cosmos3() -> dict[str, Any]:
    tokenizer = chat_tokenizer()
    transformer = Cosmos3OmniTransformer(
        head_dim=8,
        hidden_size=16,
        intermediate_size=16,
        latent_channel=CHANNELS,
        num_attention_heads=2,
        num_hidden_layers=2,
        num_key_value_heads=1,
        patch_latent_dim=4 * CHANNELS,
        rope_axes_dim=(2, 1, 1),
        sound_dim=SOUND_CHANNELS,
        sound_gen=True,
        vocab_size=len(tokenizer),
    )
    sound = Cosmos3AVAEAudioTokenizer(
        sampling_rate=200,
        hop_size=8,
        vocoder_input_dim=SOUND_CHANNELS,
        dec_dim=4,
        dec_c_mults=(1, 2),
        dec_strides=(2, 4),
        encoder_enabled=False,
    )
    return {
        "transformer": randomise(transformer, seed=1),
        "text_tokenizer": tokenizer,
        "vae": wan_vae(seed=2),
        "scheduler": UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0),
        "sound_tokenizer": randomise(sound, seed=3),
        "enable_safety_checker": False,
    }


def sana_wm() -> dict[str, Any]:
    tokenizer, text_encoder = gemma2_encoder(seed=1)
    transformer = SanaWMTransformer3DModel(
        in_channels=CHANNELS,
        num_layers=2,
        hidden_size=32,
        num_attention_heads=2,
        softmax_every_n=2,
        linear_head_dim=16,
        chunk_plucker_channels=6 * 4,  # for each of the frames of a latent one
        chunk_plucker_post_attn_blocks=2,
        caption_channels=TEXT_DIM,
    )
    return {
        "tokenizer": tokenizer,
        "text_encoder": text_encoder,
        "vae": video_vae(seed=2),
        "transformer": randomise(transformer, seed=3),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=8.0),
    }


CALL = {"negative_prompt": NEGATIVE, "height": 32, "width": 32, "num_inference_steps": 2}

CASES = [
    Case(
        "Cosmos3OmniPipeline",
        cosmos3,
        CALL | {"num_frames": 5, "image": PICTURE, "enable_sound": True, "guidance_scale": 6.0},
    ),
    Case(
        "SanaWMPipeline",
        sana_wm,
        CALL
        | {
            "num_frames": 9,
            "image": PICTURE,
            "action": "w-8",  # eight frames onward
            "intrinsics": [40.0, 40.0, 32.0, 32.0],
            "chi_prompt": ["describe the main content of"],
        },
    ),
]
