"""Flux at two sizes with random weights: one where the calls' overhead is the time, one where arithmetic is."""

from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import nn

_TEXT_WIDTH = 32
_CHANNELS = 16


@dataclass(frozen=True)
class Case:
    """A Flux and the request it is timed with. `rounds` is how often each arm is timed."""

    name: str
    heads: int
    head_dim: int
    double_blocks: int
    single_blocks: int
    height: int  # pixels; 16 x 16 of them are one token
    width: int
    text_tokens: int
    steps: int
    rounds: int

    @property
    def tokens(self) -> int:
        return self.height * self.width // 256

    def __str__(self) -> str:
        blocks = f"{self.double_blocks}+{self.single_blocks} blocks of width {self.heads * self.head_dim}"
        return f"{self.name}: {blocks}, {self.tokens}+{self.text_tokens} tokens, {self.steps} steps"

    def transformer(self, device: torch.device) -> nn.Module:
        """The model with the same random weights at each call, on every rank."""
        torch.manual_seed(0)
        config = flux_config(self.heads, self.head_dim, self.double_blocks, self.single_blocks, _TEXT_WIDTH)
        return diffusers.FluxTransformer2DModel(**config, in_channels=_CHANNELS).eval().to(device)

    def pipeline(self, transformer: nn.Module) -> Any:
        """The stock pipeline around the transformer alone: it takes embeddings and gives latents."""
        parts = dict.fromkeys(("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
        pipeline = diffusers.FluxPipeline(scheduler=scheduler, transformer=transformer, **parts)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def request(self, device: torch.device) -> dict[str, Any]:
        """Arguments of the pipeline's call, the same at each call, on every rank."""
        noise = torch.Generator("cpu").manual_seed(1)

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=noise).to(device)

        return {
            "prompt_embeds": draw(1, self.text_tokens, _TEXT_WIDTH),
            "pooled_prompt_embeds": draw(1, _TEXT_WIDTH),
            "latents": draw(1, self.tokens, _CHANNELS),  # packed
            "height": self.height,
            "width": self.width,
            "num_inference_steps": self.steps,
            "output_type": "latent",
        }

    def inputs(self, device: torch.device) -> dict[str, Any]:
        """Arguments of one call of the transformer."""
        request = self.request(device)
        return {
            "hidden_states": request["latents"],
            "encoder_hidden_states": request["prompt_embeds"],
            "pooled_projections": request["pooled_prompt_embeds"],
            "timestep": torch.tensor([0.5], device=device),
            "img_ids": torch.zeros(self.tokens, 3, device=device),
            "txt_ids": torch.zeros(self.text_tokens, 3, device=device),
            "return_dict": False,
        }


def flux_config(heads: int, head_dim: int, double_blocks: int, single_blocks: int, text_width: int) -> dict[str, Any]:
    """A Flux of any size; a block of width w has 36 w^2 parameters (double) or 15 w^2 (single)."""
    rope = head_dim // 2 // 2 * 2
    return {
        "attention_head_dim": head_dim,
        "num_attention_heads": heads,
        "num_layers": double_blocks,
        "num_single_layers": single_blocks,
        "joint_attention_dim": text_width,
        "pooled_projection_dim": text_width,
        "axes_dims_rope": (head_dim - rope, rope // 4 * 2, rope - rope // 4 * 2),
    }


LAUNCH_BOUND = Case(
    "launch-bound",
    heads=2,
    head_dim=16,
    double_blocks=8,
    single_blocks=16,
    height=64,
    width=64,
    text_tokens=8,
    steps=2,
    rounds=100,
)
COMPUTE_BOUND = Case(
    "compute-bound",
    heads=6,
    head_dim=64,
    double_blocks=2,
    single_blocks=4,
    height=384,
    width=512,
    text_tokens=64,
    steps=2,
    rounds=20,
)
CASES = (LAUNCH_BOUND, COMPUTE_BOUND)
