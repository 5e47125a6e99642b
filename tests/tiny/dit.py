"""DiT: class labels in place of prompts, and a label embedding that the model reads from outside its first block."""

from pathlib import Path

from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel

from .family import NUM_STEPS, TinyPipeline
from .image_vae import LATENT_CHANNELS, image_vae
from .weights import randomise


def build(path: Path) -> None:
    transformer = DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=LATENT_CHANNELS,
        out_channels=2 * LATENT_CHANNELS,
        num_layers=4,
        sample_size=8,
        num_embeds_ada_norm=1000,  # the pipeline takes label 1000 for "no label"
    )
    DiTPipeline(
        transformer=randomise(transformer, seed=1), vae=image_vae(seed=2), scheduler=DDIMScheduler()
    ).save_pretrained(path)


DIT = TinyPipeline(
    name="dit",
    build=build,
    call={"num_inference_steps": NUM_STEPS, "guidance_scale": 4.0},
    prompt_argument="class_labels",
    prompts=([1], [207], [950]),
    text_encoders=(),
)
