"""The figures that the evaluation reports, each from prompts, pictures and what was recognised in them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .captions import indefinite_article
from .concepts import BACKGROUNDS, CONCEPTS, STYLES, held_out_pairs
from .latents import draw_spreads
from .pictures import Scenes, draw_scenes
from .recognition import Recognised, mean_distance

VISIBLE_ABOVE = 0.1  # RMS distance, as a share of the range, from which two pictures differ at a glance

_PLACES = ("small", "large", "left", "right")


@dataclass(frozen=True)
class Asked:
    """A prompt, and what its picture should show."""

    prompt: str
    concept: int
    style: int | None = None
    background: int = 0
    place: str | None = None


def plain_prompts() -> list[Asked]:
    """One prompt a concept, under its first name: "a red apple"."""
    return [Asked(_with_article(concept.name), index) for index, concept in enumerate(CONCEPTS)]


def synonym_prompts() -> list[Asked]:
    """One prompt for every other name: "a bunny" for the rabbit."""
    return [Asked(_with_article(name), i) for i, concept in enumerate(CONCEPTS) for name in concept.names[1:]]


def style_prompts(every: int) -> list[Asked]:
    """Every style of each `every`-th concept: "a flat red apple"."""
    return [
        Asked(_with_article(f"{style.words[0]} {CONCEPTS[concept].name}"), concept, style=index)
        for concept in range(0, len(CONCEPTS), every)
        for index, style in enumerate(STYLES)
    ]


def background_prompts(*, held_out: bool) -> list[Asked]:
    """The concept and background pairs that training held out, or the same concepts with a colour it did show."""
    names = list(BACKGROUNDS)
    pairs = sorted(held_out_pairs())
    if not held_out:
        pairs = [(concept, 1 + background % (len(names) - 1)) for concept, background in pairs]
    return [
        Asked(f"{_with_article(CONCEPTS[concept].name)} on a {names[background]} background", concept, None, background)
        for concept, background in pairs
    ]


def place_prompts(every: int) -> list[Asked]:
    """Two sizes and two sides of each `every`-th concept: "a small red apple", "a red apple on the left"."""
    asked = []
    for index in range(0, len(CONCEPTS), every):
        name = CONCEPTS[index].name
        texts = (
            f"a small {name}",
            f"a large {name}",
            *(f"{_with_article(name)} on the {side}" for side in _PLACES[2:]),
        )
        asked += [Asked(text, index, place=place) for text, place in zip(texts, _PLACES, strict=True)]
    return asked


def training_scenes(concepts: Sequence[int], generator: torch.Generator) -> Scenes:
    """New training pictures of concepts, in any style and any pose, on white: what a plain prompt should look like."""
    concept = torch.tensor(concepts)
    style = torch.randint(len(STYLES), (len(concept),), generator=generator)
    scenes = draw_scenes(concept, style, generator, draw_spreads(len(concept), generator))
    return Scenes(**{**vars(scenes), "background": torch.zeros_like(concept)})


def share_right(asked: Sequence[Asked], seen: Recognised, *names: str) -> float:
    """The share of pictures in which every named property is as asked."""
    right = torch.ones(len(asked), dtype=torch.bool)
    for name in names:
        right &= getattr(seen, name) == torch.tensor([getattr(one, name) for one in asked])
    return right.double().mean().item()


def share_placed(asked: Sequence[Asked], seen: Recognised) -> float:
    """The share of pairs, small and large or left and right of the same concept, whose order is as asked."""
    left, top, right, bottom = seen.box.T
    extent, centre = torch.maximum(right - left, bottom - top), (left + right) / 2
    first = [index for index, one in enumerate(asked) if one.place in ("small", "left")]
    ordered = [(extent if asked[index].place == "small" else centre)[[index, index + 1]] for index in first]
    return sum(bool(pair[0] < pair[1]) for pair in ordered) / len(ordered)


@dataclass(frozen=True)
class Variety:
    """How much seeds matter.

    `between_seeds` is the mean RMS distance of two seeds of one prompt, `between_concepts` that of two prompts at one
    seed, both as shares of the range from black to white; `visible` the share of pairs of seeds that are more than
    `VISIBLE_ABOVE` apart; `styles` the mean number of styles among the seeds of a prompt.
    """

    between_seeds: float
    between_concepts: float
    visible: float
    styles: float

    @property
    def ratio(self) -> float:
        return self.between_seeds / self.between_concepts


def variety(pictures: torch.Tensor, styles: torch.Tensor) -> Variety:
    """Measures variety.

    Args:
        pictures: (prompts, seeds, 3, size, size) in [-1, 1].
        styles: (prompts, seeds), the recognised styles.
    """
    pairs = itertools.combinations(range(pictures.shape[1]), 2)
    seeds = torch.cat([mean_distance(pictures[:, i], pictures[:, j]) for i, j in pairs])
    flat = pictures.flatten(0, 1)
    concepts = mean_distance(flat, flat.roll(pictures.shape[1], dims=0))  # each prompt against the next one
    return Variety(
        between_seeds=seeds.mean().item(),
        between_concepts=concepts.mean().item(),
        visible=(seeds > VISIBLE_ABOVE).double().mean().item(),
        styles=sum(len(set(row)) for row in styles.tolist()) / len(styles),
    )


def _with_article(noun: str) -> str:
    return indefinite_article(noun) + noun
