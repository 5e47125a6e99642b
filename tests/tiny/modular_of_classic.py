"""Modular pipelines over the parts of families that also have a pipeline of the other kind: other code, other calls."""

from pathlib import Path

from diffusers import FluxModularPipeline, QwenImageModularPipeline, Wan22ModularPipeline

from . import flux, qwenimage, wan
from .family import NEGATIVE_PROMPT, NUM_STEPS, TinyPipeline
from .modular_directory import write_modular


def build_flux(path: Path) -> None:
    write_modular(path, FluxModularPipeline, **flux.parts())


def build_qwenimage(path: Path) -> None:
    """Without the ControlNet, which its blocks know: the index lists it without an origin."""
    write_modular(path, QwenImageModularPipeline, **qwenimage.parts())


def build_wan22(path: Path) -> None:
    """Two transformers, each with a guider of its own, and a setting of the pipeline's."""
    write_modular(path, Wan22ModularPipeline, **wan.parts_of_wan22())


MODULAR_FLUX = TinyPipeline(
    name="modular_flux", build=build_flux, call=flux.FLUX.call, text_encoders=("text_encoder", "text_encoder_2")
)

MODULAR_QWENIMAGE = TinyPipeline(
    name="modular_qwenimage",
    build=build_qwenimage,
    call={
        "negative_prompt": NEGATIVE_PROMPT,
        "height": 32,
        "width": 32,
        "num_inference_steps": NUM_STEPS,
        "max_sequence_length": 16,
    },
    unread=("text_encoder.model.visual",),
)

MODULAR_WAN22 = TinyPipeline(
    name="modular_wan22",
    build=build_wan22,
    call={
        "negative_prompt": NEGATIVE_PROMPT,
        "height": 32,
        "width": 32,
        "num_frames": 5,
        "num_inference_steps": NUM_STEPS,
        "max_sequence_length": 24,
    },
    denoisers=("transformer", "transformer_2"),
    output="videos",
)
