"""Measures the default adapter: is its look there, and is the thing that was asked for?

Every concept is drawn at fixed seeds with the adapter (merged, weight 1) and without it. The figures, for both:

  concept      the nearest training picture shows the concept asked for; these are line art with the adapter, and the
               icons themselves without it (see scripts/emoji/recognition.py)
  background   ... on the background asked for, for the pairs of concept and colour that training showed
  saturation   the mean, over the things' pixels, of how far the greatest and the least of red, green and blue are apart
  ink          the share of the things' pixels that are near ink or near white
  ceiling      the same for line art through the autoencoder: what a perfect adapter would draw

  python scripts/evaluate_default_lora.py --grid models/emoji-dit-lora-ink/grid.png \\
      --json models/emoji-dit-lora-ink/evaluation.json

It needs the icons, which scripts/train_default_model.py data puts into the cache, and takes about four minutes on one
core.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from emoji.grid import save_grid
from emoji.icons import load_icons
from emoji.line_art import INK, line_art
from emoji.measures import Asked, background_prompts, plain_prompts, share_right
from emoji.pictures import draw_icons, render
from emoji.recognition import FOREGROUND_ABOVE, Gallery
from evaluate_default_model import Sampler

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lora import Edits, MergedWeights, edits_of, read_adapter  # noqa: E402 (the path comes first)

GRID_PROMPTS = (
    "a red apple",
    "a cat",
    "a rocket",
    "a penguin on a pink background",
    "a house on a purple background",
    "a sunflower on a blue background",
    "a castle on an orange background",
    "a guitar",
    "a robot on a yellow background",
)
NEAR = 0.25  # of the range from black to white, in each of red, green and blue


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "models/emoji-dit", help="the model (%(default)s)")
    parser.add_argument("--adapter", type=Path, default=ROOT / "models/emoji-dit-lora-ink", help="(%(default)s)")
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache/emoji", help="the icons (%(default)s)")
    parser.add_argument("--steps", type=int, default=16, help="sampling steps (%(default)s)")
    parser.add_argument("--guidance", type=float, default=3.0, help="guidance scale (%(default)s)")
    parser.add_argument("--seeds", type=int, default=2, help="seeds of each plain prompt (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (%(default)s)")
    parser.add_argument("--grid", type=Path, help="write a PNG of the same prompts and seeds with and without here")
    parser.add_argument("--grid-only", action="store_true", help="write the grid and measure nothing")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    return parser.parse_args()


def look(pictures: torch.Tensor) -> dict[str, float]:
    """How the things look, without their backgrounds: pictures are (n, 3, size, size) in [-1, 1]."""
    border = torch.cat((pictures[:, :, 0], pictures[:, :, -1], pictures[..., 0], pictures[..., -1]), dim=2)
    colour = border.median(dim=2).values[:, :, None, None]
    thing = (pictures - colour).abs().amax(dim=1) > FOREGROUND_ABOVE  # (n, size, size)
    pixels = ((pictures + 1) / 2).permute(0, 2, 3, 1)[thing]  # (pixels, 3)
    ends = torch.tensor((INK, (1.0, 1.0, 1.0)))
    near = ((pixels[:, None] - ends).abs().amax(dim=2) < NEAR).any(dim=1)
    return {
        "saturation": (pixels.amax(dim=1) - pixels.amin(dim=1)).mean().item(),
        "ink": near.double().mean().item(),
    }


def measure(sampler: Sampler, gallery: Gallery, *, num_seeds: int) -> dict[str, float]:
    """The figures of the model as it is now; shares are between 0 and 1."""
    plain = plain_prompts()
    pictures = torch.cat([_draw(sampler, plain, seed) for seed in range(num_seeds)])
    figures = {"concept": share_right(plain * num_seeds, gallery.recognise(pictures), "concept"), **look(pictures)}
    asked = background_prompts(held_out=False)
    figures["background"] = share_right(asked, gallery.recognise(_draw(sampler, asked, 0)), "background")
    return figures


def _draw(sampler: Sampler, asked: Sequence[Asked], seed: int) -> torch.Tensor:
    return sampler.draw([one.prompt for one in asked], seed)


@torch.no_grad()
def ceiling(sampler: Sampler, icons: torch.Tensor, gallery: Gallery) -> dict[str, float]:
    """The figures of new line art through the autoencoder."""
    scenes = draw_icons(1, torch.Generator().manual_seed(2))[slice(0, 416)]
    pictures = torch.cat([sampler.autoencoder(part).sample.clamp(-1, 1) for part in render(scenes, icons).split(64)])
    right = gallery.recognise(pictures).concept == scenes.concept
    return {"concept": right.double().mean().item(), **look(pictures)}


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    sampler = Sampler(arguments.model, steps=arguments.steps, guidance=arguments.guidance)
    modules = {"transformer": sampler.pipeline.transformer}
    adapters = {"ink": read_adapter(arguments.adapter, modules)}
    weights = MergedWeights(modules["transformer"])
    states = {"without": Edits(), "with": edits_of("transformer", adapters, {"ink": 1.0})}
    if arguments.grid:
        rows = []
        for edits in states.values():
            weights.set(edits)
            rows.append(torch.stack([sampler.draw(GRID_PROMPTS, seed) for seed in range(2)], dim=1))
        save_grid(arguments.grid, GRID_PROMPTS, torch.cat(rows, dim=1), columns=3)
        if arguments.grid_only:
            return
    icons = load_icons(arguments.cache)
    galleries = {"without": Gallery(icons), "with": Gallery(line_art(icons)[:1])}
    figures = {}
    for state, edits in states.items():
        weights.set(edits)
        figures[state] = measure(sampler, galleries[state], num_seeds=arguments.seeds)
    figures["ceiling"] = ceiling(sampler, line_art(icons), galleries["with"])
    rounded = {state: {key: round(value, 4) for key, value in part.items()} for state, part in figures.items()}
    text = json.dumps(rounded | {"seeds": arguments.seeds, "steps": arguments.steps}, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
