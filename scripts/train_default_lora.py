"""Makes the default adapter, models/emoji-dit-lora-ink: the embedded model's things as line art.

The pictures are those that the embedded model was trained on, with each icon redrawn by an edge filter
(scripts/emoji/line_art.py). Only LoRA factors of the transformer learn, by the same flow matching; text encoder and
autoencoder stay as they are. peft puts the factors in and writes the folder, so that
`PeftModel.from_pretrained(pipeline.transformer, FOLDER)` reads it without this project.

An interrupted run continues from its last checkpoint in the cache. The icons must be in the cache already:
scripts/train_default_model.py data puts them there.

  nice python scripts/train_default_lora.py          # 15 minutes of one core, and one minute to draw the pictures

Then measure it with scripts/evaluate_default_lora.py.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, PixArtTransformer2DModel
from diffusers.models.attention_processor import AttnProcessor
from emoji.captions import CaptionWriter, build_tokenizer
from emoji.denoiser import NUM_TRAIN_TIMESTEPS, draw_times
from emoji.icons import load_icons
from emoji.latents import encode_scenes, load_scenes
from emoji.line_art import line_art
from emoji.schedule import is_finished, train
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn import functional as F
from transformers import T5EncoderModel

ROOT = Path(__file__).resolve().parent.parent
RANK = ALPHA = 16
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"]
SCENES_PER_ICON = 10  # of each of three styles, which all look alike here
BATCH_SIZE = 48
LEARNING_RATE = 2e-3


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "models/emoji-dit", help="the base model (%(default)s)")
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache/emoji", help="icons and checkpoint (%(default)s)")
    parser.add_argument("--output", type=Path, default=ROOT / "models/emoji-dit-lora-ink", help="(%(default)s)")
    parser.add_argument("--minutes", type=float, default=15, help="training time (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (%(default)s)")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    latents, checkpoint = arguments.cache / "line-art-latents.pt", arguments.cache / "line-art-lora.pt"
    if not latents.exists():
        start = time.monotonic()
        autoencoder = AutoencoderKL.from_pretrained(arguments.model / "vae").eval()
        encode_scenes(autoencoder, line_art(load_icons(arguments.cache)), latents, num_each=SCENES_PER_ICON)
        print(f"pictures drawn and encoded in {time.monotonic() - start:.0f} s", flush=True)
    adapter = add_adapter(PixArtTransformer2DModel.from_pretrained(arguments.model / "transformer"))
    if not is_finished(checkpoint, arguments.minutes):
        text_encoder = T5EncoderModel.from_pretrained(arguments.model / "text_encoder").eval().requires_grad_(False)
        train_adapter(adapter, text_encoder, latents, checkpoint, minutes=arguments.minutes)
    else:
        adapter.load_state_dict(torch.load(checkpoint, weights_only=True)["adapter"])
    export(adapter, arguments.output)
    print(f"export: {arguments.output}")


def add_adapter(transformer: PixArtTransformer2DModel) -> PeftModel:
    """The transformer with its weights frozen and fresh factors beside every linear layer of its blocks."""
    # The fused attention's backward takes more than half of a step at this size on a CPU; plain matrix products do not.
    transformer.set_attn_processor(AttnProcessor())
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS)
    return get_peft_model(transformer, config)


def train_adapter(
    adapter: PeftModel, text_encoder: T5EncoderModel, latents: Path, checkpoint: Path, *, minutes: float
) -> None:
    """Trains the factors for `minutes`, resuming from `checkpoint` if it exists."""
    factors = [parameter for parameter in adapter.parameters() if parameter.requires_grad]
    print(f"{sum(factor.numel() for factor in factors):,} parameters in {len(factors)} factors", flush=True)
    optimizer = torch.optim.AdamW(factors, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    step = flow_matching_step(adapter, text_encoder, latents)
    train(checkpoint, {"adapter": adapter}, [optimizer], step, minutes=minutes)


def flow_matching_step(
    adapter: PeftModel, text_encoder: T5EncoderModel, latents: Path
) -> Callable[[float], torch.Tensor]:
    """The gradients of one batch: the velocity from data to noise, as the base model learned it."""
    encoded, tokenizer = load_scenes(latents), build_tokenizer()
    generator = torch.Generator()  # not saved: a resumed run draws another order and other captions
    writer = CaptionWriter(generator.seed())

    def step(_: float) -> torch.Tensor:
        batch = torch.randint(len(encoded.scenes), (BATCH_SIZE,), generator=generator)
        captions = tokenizer(writer.write(encoded.scenes[batch]), padding="longest", return_tensors="pt")
        time_ = draw_times(BATCH_SIZE, generator)
        data = encoded.latents[batch].float()
        noise = torch.randn(data.shape, generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                text = text_encoder(captions.input_ids, attention_mask=captions.attention_mask).last_hidden_state
            velocity = adapter(
                torch.lerp(data, noise, time_[:, None, None, None]),
                encoder_hidden_states=text,
                encoder_attention_mask=captions.attention_mask,
                timestep=time_ * NUM_TRAIN_TIMESTEPS,
                added_cond_kwargs={"resolution": None, "aspect_ratio": None},
                return_dict=False,
            )[0]
        loss = F.mse_loss(velocity.float(), noise - data)
        loss.backward()
        return loss

    return step


def export(adapter: PeftModel, folder: Path) -> None:
    """Writes what peft writes, in bfloat16 as the base model is; the card, which is ours, stays as it is."""
    for parameter in adapter.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    adapter.peft_config["default"].base_model_name_or_path = "models/emoji-dit"
    adapter.create_or_update_model_card = lambda _: None
    adapter.save_pretrained(folder, safe_serialization=True)
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors writes files that only their owner may read


if __name__ == "__main__":
    main()
