"""Measures the embedded default model: does it draw what a prompt asks for, and do seeds matter?

Every concept is drawn at fixed seeds, and its pictures are compared with training pictures of all concepts; the
nearest one says what the picture shows (see scripts/emoji/recognition.py for what "nearest" means when poses are
random). The figures:

  concept      the nearest training picture shows the concept asked for, over all concepts and seeds, and over synonyms
  style        ... in the style asked for, for prompts that name one
  held out     ... on the background asked for, for the pairs of concept and background that training never showed;
               the same concepts with a colour that training did show are the comparison
  placing      "small" is smaller than "large", "on the left" is left of "on the right"
  variety      RMS distance between two seeds of a prompt, relative to that between two prompts; the share of pairs of
               seeds that differ visibly (RMS above 0.1 of the range); how many of the three styles four seeds show
  ceiling      the same figures for new training pictures, through the autoencoder: what a perfect denoiser would reach

  python scripts/evaluate_default_model.py --grid models/emoji-dit/grid.png --json models/emoji-dit/evaluation.json

It needs the icons, which scripts/train_default_model.py data puts into the cache, and takes about five minutes on two
cores.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers import PixArtSigmaPipeline
from emoji.concepts import CONCEPTS
from emoji.grid import save_grid
from emoji.icons import load_icons
from emoji.measures import (
    Asked,
    background_prompts,
    place_prompts,
    plain_prompts,
    share_placed,
    share_right,
    style_prompts,
    synonym_prompts,
    training_scenes,
    variety,
)
from emoji.pictures import render
from emoji.recognition import Gallery

ROOT = Path(__file__).resolve().parent.parent
GRID_PROMPTS = (
    "a red apple",
    "a cat",
    "a rocket",
    "a pizza",
    "a sunflower on a blue background",
    "a penguin on a pink background",
    "a flat fox",
    "a 3d fox",
    "a small frog on the left",
    "a large frog",
    "a house on a purple background",
    "a unicorn",
    "a robot on a yellow background",
    "a classic car",
    "a pumpkin on a black background",
    "a turtle on an orange background",
    "a guitar",
    "a birthday cake",
)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "models/emoji-dit", help="the model (%(default)s)")
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache/emoji", help="the icons (%(default)s)")
    parser.add_argument("--steps", type=int, default=16, help="sampling steps (%(default)s)")
    parser.add_argument("--guidance", type=float, default=3.0, help="guidance scale (%(default)s)")
    parser.add_argument("--seeds", type=int, default=4, help="seeds of each plain prompt (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of torch (%(default)s)")
    parser.add_argument("--grid", type=Path, help="write a PNG of samples here")
    parser.add_argument("--grid-only", action="store_true", help="write the grid and measure nothing")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    return parser.parse_args()


class Sampler:
    """Draws prompts with the pipeline, in batches; a picture depends on its prompt and seed, not on its batch."""

    def __init__(self, model: Path, *, steps: int, guidance: float) -> None:
        self.pipeline = PixArtSigmaPipeline.from_pretrained(model)
        self.pipeline.set_progress_bar_config(disable=True)
        self.autoencoder = self.pipeline.vae
        self._options = {"num_inference_steps": steps, "guidance_scale": guidance}

    def draw(self, prompts: Sequence[str], seed: int, *, batch_size: int = 16) -> torch.Tensor:
        """One picture a prompt, all at the same seed: (n, 3, 64, 64) in [-1, 1]."""
        pictures = []
        for start in range(0, len(prompts), batch_size):
            batch = list(prompts[start : start + batch_size])
            output = self.pipeline(
                batch,
                generator=[torch.Generator().manual_seed(seed) for _ in batch],
                height=64,
                width=64,
                max_sequence_length=32,
                use_resolution_binning=False,
                clean_caption=False,
                output_type="pt",
                **self._options,
            )
            pictures.append(output.images * 2 - 1)
        return torch.cat(pictures)


def measure(sampler: Sampler, icons: torch.Tensor, autoencoder: torch.nn.Module, *, num_seeds: int) -> dict[str, Any]:
    """All figures, by name; shares are between 0 and 1."""
    gallery = Gallery(icons)

    def draw(asked: Sequence[Asked], seed: int = 0) -> torch.Tensor:
        return sampler.draw([one.prompt for one in asked], seed)

    figures: dict[str, Any] = {"concepts": len(CONCEPTS), "seeds": num_seeds}
    plain = plain_prompts()
    pictures = torch.stack([draw(plain, seed) for seed in range(num_seeds)], dim=1)
    seen = gallery.recognise(pictures.flatten(0, 1))
    repeated = [one for one in plain for _ in range(num_seeds)]
    figures["concept"] = share_right(repeated, seen, "concept")
    figures["white background"] = share_right(repeated, seen, "background")
    figures["confused"] = _confusions(repeated, seen.concept)
    figures["variety"] = _variety_figures(pictures, seen.style.view(-1, num_seeds))

    asked = synonym_prompts()
    figures["concept, synonyms"] = share_right(asked, gallery.recognise(draw(asked)), "concept")
    asked = style_prompts(every=4)
    seen = gallery.recognise(draw(asked))
    figures["style"] = {"style": share_right(asked, seen, "style"), "concept": share_right(asked, seen, "concept")}
    for title, held_out in (("backgrounds, held out", True), ("backgrounds, trained", False)):
        asked = background_prompts(held_out=held_out)
        seen = gallery.recognise(draw(asked))
        names = {"concept": ("concept",), "background": ("background",), "both": ("concept", "background")}
        figures[title] = {"pairs": len(asked)} | {key: share_right(asked, seen, *value) for key, value in names.items()}
    asked = place_prompts(every=8)
    figures["placing"] = share_placed(asked, gallery.recognise(draw(asked)))

    scenes = training_scenes([one.concept for one in repeated], torch.Generator().manual_seed(0))
    pictures = _reconstruct(autoencoder, render(scenes, icons))
    seen = gallery.recognise(pictures)
    figures["ceiling"] = {
        "concept": share_right(repeated, seen, "concept"),
        "variety": _variety_figures(pictures.unflatten(0, (-1, num_seeds)), seen.style.view(-1, num_seeds)),
    }
    return figures


def _variety_figures(pictures: torch.Tensor, styles: torch.Tensor) -> dict[str, float]:
    measured = variety(pictures, styles)
    return asdict(measured) | {"ratio": measured.ratio}


def _confusions(asked: Sequence[Asked], concept: torch.Tensor) -> list[str]:
    """ "asked -> seen" for each picture of the wrong concept."""
    pairs = zip(asked, concept.tolist(), strict=True)
    return [f"{CONCEPTS[one.concept].name} -> {CONCEPTS[seen].name}" for one, seen in pairs if seen != one.concept]


@torch.inference_mode()
def _reconstruct(autoencoder: torch.nn.Module, pictures: torch.Tensor) -> torch.Tensor:
    return torch.cat([autoencoder(batch).sample.clamp(-1, 1) for batch in pictures.split(64)])


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    sampler = Sampler(arguments.model, steps=arguments.steps, guidance=arguments.guidance)
    if arguments.grid:
        pictures = torch.stack([sampler.draw(GRID_PROMPTS, seed) for seed in range(4)], dim=1)
        save_grid(arguments.grid, GRID_PROMPTS, pictures, columns=3)
        if arguments.grid_only:
            return
    figures = measure(sampler, load_icons(arguments.cache), sampler.autoencoder, num_seeds=arguments.seeds)
    figures |= {"steps": arguments.steps, "guidance": arguments.guidance}
    text = json.dumps(_rounded(figures), indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
