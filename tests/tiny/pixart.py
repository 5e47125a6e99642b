"""PixArt-Sigma: classifier-free guidance in one batch of two, learned variance, a multistep solver."""

from pathlib import Path

from diffusers import DPMSolverMultistepScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel

from .family import NEGATIVE_PROMPT, NUM_STEPS, TinyPipeline
from .image_vae import LATENT_CHANNELS, image_vae
from .text_encoders import TEXT_DIM, t5_encoder
from .weights import randomise


def build(path: Path) -> None:
    tokenizer, text_encoder = t5_encoder(seed=1)
    transformer = PixArtTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=LATENT_CHANNELS,
        out_channels=2 * LATENT_CHANNELS,
        num_layers=4,
        cross_attention_dim=32,
        sample_size=8,
        use_additional_conditions=False,
        caption_channels=TEXT_DIM,
    )
    PixArtSigmaPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=image_vae(seed=2),
        transformer=randomise(transformer, seed=3),
        # Less noise than usual: the solver divides by the signal left at the first step, 1/150 with the stock schedule.
        scheduler=DPMSolverMultistepScheduler(beta_end=0.005),
    ).save_pretrained(path)


PIXART = TinyPipeline(
    name="pixart",
    build=build,
    call={
        "negative_prompt": NEGATIVE_PROMPT,
        "height": 16,
        "width": 16,
        "num_inference_steps": NUM_STEPS,
        "guidance_scale": 4.5,
        "max_sequence_length": 24,
        "use_resolution_binning": False,
        "clean_caption": False,
    },
)
