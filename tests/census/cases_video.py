"""Video families with one or two pipelines each."""

from typing import Any

from diffusers import (
    AdaptiveProjectedGuidance,
    AllegroTransformer3DModel,
    AutoencoderKLAllegro,
    AutoencoderKLMagvit,
    AutoencoderKLMochi,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EasyAnimateTransformer3DModel,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LatteTransformer3DModel,
    MochiTransformer3DModel,
    MotifVideoTransformer3DModel,
    SanaVideoTransformer3DModel,
)
from transformers import T5Gemma2Encoder, T5Gemma2EncoderConfig

from tests.census.case import NEGATIVE, PICTURE, Case
from tests.census.parts import wan_vae
from tests.census.vision import VISION_DIM, siglip_image_processor, siglip_vision
from tests.tiny.image_vae import image_vae
from tests.tiny.text_encoders import TEXT_DIM, gemma2_encoder, qwen_vl_encoder, t5_encoder
from tests.tiny.tokenizers import gemma_tokenizer
from tests.tiny.weights import randomise

CHANNELS = 4  # of the latents
CALL = {"negative_prompt": NEGATIVE, "height": 16, "width": 16, "num_inference_steps": 2, "guidance_scale": 4.5}


def _mochi() -> dict[str, Any]:
    tokenizer, text_encoder = t5_encoder(seed=1)
    transformer = MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,  # the last treats the text otherwise
        pooled_projection_dim=16,
        in_channels=12,
        text_embed_dim=TEXT_DIM,
        time_embed_dim=8,
        max_sequence_length=16,
    )
    vae = AutoencoderKLMochi(
        encoder_block_out_channels=(32, 32, 32, 32),  # its norms have 32 groups
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
    )
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        "vae": randomise(vae, seed=2),
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "transformer": randomise(transformer, seed=3),
    }


def _latte() -> dict[str, Any]:
    tokenizer, text_encoder = t5_encoder(seed=1)
    transformer = LatteTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=CHANNELS,
        out_channels=2 * CHANNELS,
        num_layers=1,
        cross_attention_dim=16,
        sample_size=8,
        patch_size=2,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        caption_channels=TEXT_DIM,
        video_length=2,
    )
    return {
        "tokenizer": tokenizer,
        "text_encoder": text_encoder,
        "vae": image_vae(seed=2),
        "transformer": randomise(transformer, seed=3),
        "scheduler": DDIMScheduler(beta_end=0.005),
    }


def _easyanimate(in_channels: int) -> dict[str, Any]:
    tokenizer, text_encoder = qwen_vl_encoder(seed=1)
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content[0].text }}<|im_end|>\n"
        "{% endfor %}<|im_start|>assistant\n"
    )
    transformer = EasyAnimateTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=in_channels,
        out_channels=CHANNELS,
        patch_size=2,
        num_layers=2,
        mmdit_layers=1,
        time_embed_dim=8,
        add_norm_text_encoder=True,
        text_embed_dim=TEXT_DIM,
    )
    vae = AutoencoderKLMagvit(
        latent_channels=CHANNELS, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
    )
    return {
        "vae": randomise(vae, seed=2),
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "transformer": randomise(transformer, seed=3),
        "scheduler": FlowMatchEulerDiscreteScheduler(),
    }


def _allegro() -> dict[str, Any]:
    """Its autoencoder works by tiles of 24 frames only, which are that large at least."""
    tokenizer, text_encoder = t5_encoder(seed=1)
    transformer = AllegroTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=1,
        cross_attention_dim=24,
        sample_height=16,
        sample_width=16,
        sample_frames=6,
        caption_channels=TEXT_DIM,
    )
    vae = AutoencoderKLAllegro(
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4, sample_size=128, scaling_factor=1.0
    )
    return {
        "tokenizer": tokenizer,
        "text_encoder": text_encoder,
        "vae": randomise(vae, seed=2),
        "transformer": randomise(transformer, seed=3),
        "scheduler": EulerAncestralDiscreteScheduler(beta_end=0.005),
    }


def _motif(**others: Any) -> dict[str, Any]:
    transformer = MotifVideoTransformer3DModel(
        in_channels=2 * CHANNELS + 1,  # beside the latents: those of the condition, and a mask
        out_channels=CHANNELS,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_single_layers=2,
        num_decoder_layers=1,
        mlp_ratio=2.0,
        text_embed_dim=TEXT_DIM,
        image_embed_dim=VISION_DIM,
        rope_axes_dim=(2, 2, 4),
        enable_text_cross_attention_dual=True,
        enable_text_cross_attention_single=True,
    )
    tokenizer = gemma_tokenizer()
    config = T5Gemma2EncoderConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": TEXT_DIM,
            "intermediate_size": 2 * TEXT_DIM,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "dropout_rate": 0.0,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        vision_config=siglip_vision(seed=1).config.to_dict(),
        mm_tokens_per_image=4,
        image_token_index=len(tokenizer) - 1,
    )
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(),
        "vae": wan_vae(seed=2),
        "text_encoder": randomise(T5Gemma2Encoder(config, eoi_token_index=len(tokenizer) - 2), seed=1),
        "tokenizer": tokenizer,
        "transformer": randomise(transformer, seed=3),
        "guider": AdaptiveProjectedGuidance(guidance_scale=8.0),
    } | others


def _motif_image_to_video() -> dict[str, Any]:
    return _motif(feature_extractor=siglip_image_processor())


def _sana_video(scheduler: Any) -> dict[str, Any]:
    tokenizer, text_encoder = gemma2_encoder(seed=1)
    transformer = SanaVideoTransformer3DModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=TEXT_DIM,
        sample_size=4,
        rope_max_seq_len=32,
    )
    return {
        "tokenizer": tokenizer,
        "text_encoder": text_encoder,
        "vae": wan_vae(seed=2),
        "transformer": randomise(transformer, seed=3),
        "scheduler": scheduler,
    }


def _sana_text_to_video() -> dict[str, Any]:
    return _sana_video(
        DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0)
    )


def _sana_image_to_video() -> dict[str, Any]:
    return _sana_video(FlowMatchEulerDiscreteScheduler(shift=8.0))


SANA = CALL | {
    "height": 32,
    "width": 32,
    "frames": 5,
    "use_resolution_binning": False,
    "max_sequence_length": 24,
    "complex_human_instruction": ["describe the main content of"],
}

MOTIF = {
    "negative_prompt": NEGATIVE,
    "height": 32,
    "width": 32,
    "num_frames": 5,
    "num_inference_steps": 2,
    "max_sequence_length": 16,
}

CASES = [
    Case("MochiPipeline", _mochi, CALL | {"num_frames": 7, "max_sequence_length": 16}),
    Case("LattePipeline", _latte, CALL | {"video_length": 2, "decode_chunk_size": 1, "clean_caption": False}),
    Case("EasyAnimatePipeline", lambda: _easyanimate(CHANNELS), CALL | {"num_frames": 5}),
    Case("EasyAnimateInpaintPipeline", lambda: _easyanimate(2 * CHANNELS + 1), CALL | {"num_frames": 5}),
    Case(
        "AllegroPipeline",
        _allegro,
        CALL | {"height": 128, "width": 128, "num_frames": 24, "clean_caption": False},
        settings=("components.vae.tiling=true",),
        prepare=lambda pipeline: pipeline.vae.enable_tiling(),
    ),
    Case("MotifVideoPipeline", _motif, MOTIF),
    Case("MotifVideoImage2VideoPipeline", _motif_image_to_video, MOTIF | {"image": PICTURE}),
    Case("SanaVideoPipeline", _sana_text_to_video, SANA),
    Case("SanaImageToVideoPipeline", _sana_image_to_video, SANA | {"image": PICTURE}),
]
