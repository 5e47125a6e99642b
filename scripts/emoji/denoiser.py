"""The text encoder and the diffusion transformer, trained together by flow matching.

[Note: words] T5's stock initialisation puts words at random places, a standard deviation of 1 apart, where a learning
rate of 1e-3 leaves them, so that the transformer has to learn 200 arbitrary codes by heart. Measured from one set of
transformer weights: 446 steps that way, and a wrong noun in the caption raised the loss at noise level 0.85 from 0.512
to 0.527; 236 steps from words at a tenth of that, with a rate of 5e-3 for words alone, and it raised it from 0.428 to
0.584. (Colours of backgrounds, of which there are few and which fill the picture, are learned either way.)
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import PixArtTransformer2DModel
from diffusers.models.attention_processor import AttnProcessor
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel
from transformers import T5Config, T5EncoderModel

from .captions import CaptionWriter, build_tokenizer
from .latents import load_scenes
from .muon import Muon
from .schedule import train

BATCH_SIZE = 48
LEARNING_RATE = 1e-3
USUAL_UNTIL, WHOLE_FROM = 0.2, 0.65  # the shares of the training between which the poses' spread grows
WORD_LEARNING_RATE = 5e-3
MATRIX_LEARNING_RATE = 0.015  # Muon's, in singular values
AVERAGE_DECAY = 0.997
TIME_LOGIT_MEAN = 0.5
UNIFORM_SHARE = 0.15  # of the noise levels; the rest are logit-normal
NUM_TRAIN_TIMESTEPS = 1000
TEXT_WIDTH = 128


class TextToLatents(nn.Module):
    """From noisy latents and tokens to the flow's velocity: the two models that the denoiser stage trains."""

    def __init__(self, vocabulary_size: int) -> None:
        super().__init__()
        self.text_encoder = T5EncoderModel(
            T5Config(
                vocab_size=vocabulary_size,
                d_model=TEXT_WIDTH,
                d_kv=32,
                d_ff=256,
                num_heads=4,
                num_layers=2,
                dropout_rate=0.0,
                initializer_factor=0.1,  # words start close to each other, so that training can place them
                is_encoder_decoder=False,
                use_cache=False,
            )
        )
        self.transformer = PixArtTransformer2DModel(
            num_attention_heads=8,
            attention_head_dim=24,
            cross_attention_dim=192,
            num_layers=6,
            in_channels=4,
            out_channels=4,
            sample_size=16,
            patch_size=2,
            caption_channels=TEXT_WIDTH,
            use_additional_conditions=False,
        )

    def forward(
        self, noisy: torch.Tensor, time: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Predicts noise minus data.

        Args:
            noisy: (n, 4, 16, 16), `(1 - time) * data + time * noise`.
            time: (n,) in [0, 1]; 1 is pure noise.
            tokens: (n, length) token ids.
            mask: (n, length), 1 where a token counts.
        """
        text = self.text_encoder(tokens, attention_mask=mask).last_hidden_state
        return self.transformer(
            noisy,
            encoder_hidden_states=text,
            encoder_attention_mask=mask,
            timestep=time * NUM_TRAIN_TIMESTEPS,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]


def build_denoiser() -> TextToLatents:
    """An untrained denoiser whose output starts at zero, as DiT's does.

    The caption projection starts louder than by default, since cross-attention does not normalise what it reads.
    """
    model = TextToLatents(len(build_tokenizer()))
    nn.init.zeros_(model.transformer.proj_out.weight)
    nn.init.zeros_(model.transformer.proj_out.bias)
    projection = model.transformer.caption_projection
    for linear in (projection.linear_1, projection.linear_2):
        nn.init.normal_(linear.weight, std=(2 / linear.in_features) ** 0.5)
    return model


def averaged(model: nn.Module) -> AveragedModel:
    """An exponential moving average of a model's parameters; shorter at first, so that early exports are of use."""

    def average(averages: list[torch.Tensor], currents: list[torch.Tensor], num_averaged: torch.Tensor) -> None:
        num = int(num_averaged)
        torch._foreach_lerp_(averages, currents, 1 - min(AVERAGE_DECAY, (1 + num) / (10 + num)))

    return AveragedModel(model, multi_avg_fn=average)


def train_denoiser(latents_path: Path, checkpoint: Path, *, minutes: float, on_save: Callable[[], None]) -> None:
    """Trains on the encoded scenes for `minutes`, resuming from `checkpoint` if it exists.

    `on_save` is called after each checkpoint; `load_denoiser` then finds the average so far.
    """
    encoded = load_scenes(latents_path)
    model, tokenizer = build_denoiser(), build_tokenizer()
    # The fused attention's backward takes more than half of a step at this size on a CPU; plain matrix products do not.
    model.transformer.set_attn_processor(AttnProcessor())
    average = averaged(model)
    optimizers = build_optimizers(model)
    optimizers[-1].register_step_post_hook(lambda *_: average.update_parameters(model))
    generator = torch.Generator()  # not saved: a resumed run draws another order and other captions
    writer = CaptionWriter(generator.seed())

    def step(progress: float) -> torch.Tensor:
        num_shown = encoded.num_within(pose_spread(progress))
        batch = torch.randint(num_shown, (BATCH_SIZE,), generator=generator)
        captions = tokenizer(writer.write(encoded.scenes[batch]), padding="longest", return_tensors="pt")
        time = draw_times(len(batch), generator)
        data = encoded.latents[batch].float()
        noise = torch.randn(data.shape, generator=generator)
        noisy = torch.lerp(data, noise, time[:, None, None, None])
        with torch.autocast("cpu", torch.bfloat16):
            velocity = model(noisy, time, captions.input_ids, captions.attention_mask)
        loss = F.mse_loss(velocity.float(), noise - data)
        loss.backward()
        return loss

    state = {"model": model, "average": average}
    train(checkpoint, state, optimizers, step, minutes=minutes, on_save=on_save)


def pose_spread(progress: float) -> float:
    """How far poses may be from the usual one after a share of the training.

    A noun says more about a noisy pixel while all poses are alike, so nouns come first and poses spread later.
    """
    return min(max((progress - USUAL_UNTIL) / (WHOLE_FROM - USUAL_UNTIL), 0.0), 1.0)


def build_optimizers(model: TextToLatents) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the transformer's blocks and captions, AdamW for the rest, faster for words."""
    modules = (model.transformer.transformer_blocks, model.transformer.caption_projection)
    matrices = [m.weight for module in modules for m in module.modules() if isinstance(m, nn.Linear)]
    words = [model.text_encoder.shared.weight]
    chosen = {id(parameter) for parameter in (*matrices, *words)}
    others = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
    groups = [
        {"params": others, "lr": LEARNING_RATE, "weight_decay": 0.01},
        {"params": words, "lr": WORD_LEARNING_RATE, "weight_decay": 0.0},
    ]
    return [
        Muon(matrices, lr=MATRIX_LEARNING_RATE),
        torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True),
    ]


def draw_times(num: int, generator: torch.Generator) -> torch.Tensor:
    """Noise levels in [0, 1]: logit-normal (Esser et al., 2024), with some uniform ones so that both ends are seen.

    The mean favours much noise, where what a picture shows is decided.
    """
    times = torch.sigmoid(TIME_LOGIT_MEAN + torch.randn(num, generator=generator))
    uniform = torch.rand(num, generator=generator) < UNIFORM_SHARE
    return torch.where(uniform, torch.rand(num, generator=generator), times)


def load_denoiser(checkpoint: Path) -> TextToLatents:
    """The averaged denoiser of a checkpoint."""
    average = averaged(build_denoiser())
    average.load_state_dict(torch.load(checkpoint, weights_only=True)["average"])
    return average.module.eval().requires_grad_(False)
