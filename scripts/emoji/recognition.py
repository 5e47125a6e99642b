"""Recognising what a picture shows, by its nearest training picture.

[Note: poses] Training pictures are shifted, scaled, turned and mirrored at random, so a plain pixel distance would
find the nearest pose, not the nearest thing. Both sides are therefore cropped to what differs from their flat
background and resized to one small square, which undoes shift and scale; the gallery holds every icon turned and
mirrored, which undoes the rest; and it is painted on the background that the picture has, so that colours at the
outline agree.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from .concepts import BACKGROUNDS
from .pictures import Scenes, render

CROP_SIZE = 24
GALLERY_SIZE = 48  # pixels; enough for a crop
GALLERY_TURNS = (-0.14, 0.0, 0.14)  # radians
TRIM = 0.02  # of the foreground, on each side of a box
FOREGROUND_ABOVE = 0.3  # difference from the background, of the range [-1, 1], that makes a pixel part of the thing


@dataclass(frozen=True)
class Recognised:
    """What each of n pictures shows: (n,) indices, and the box of the thing as shares of the picture."""

    concept: torch.Tensor
    style: torch.Tensor
    background: torch.Tensor
    box: torch.Tensor  # (n, 4): left, top, right, bottom


class Gallery:
    """Crops of every icon, turned and mirrored, on every background; each background's are made when first asked
    for."""

    def __init__(self, icons: torch.Tensor) -> None:
        self._icons = icons
        self._crops: dict[int, torch.Tensor] = {}
        num_styles, num_concepts = icons.shape[:2]
        axes = (torch.arange(num) for num in (num_styles, num_concepts, len(GALLERY_TURNS), 2))
        self._style, self._concept, turn, mirrored = (index.flatten() for index in torch.meshgrid(*axes, indexing="ij"))
        self._turn, self._mirrored = torch.tensor(GALLERY_TURNS)[turn], mirrored.bool()

    def recognise(self, pictures: torch.Tensor) -> Recognised:
        """Finds the nearest training picture of each of (n, 3, size, size) pictures in [-1, 1]."""
        background = background_colours(pictures)
        crops, boxes = crop_things(pictures)
        nearest = torch.empty(len(pictures), dtype=torch.int64)
        for colour in background.unique().tolist():
            members = background == colour
            nearest[members] = torch.cdist(crops[members].flatten(1), self._crops_on(colour).flatten(1)).argmin(dim=1)
        return Recognised(self._concept[nearest], self._style[nearest], background, boxes)

    def _crops_on(self, background: int) -> torch.Tensor:
        if background not in self._crops:
            num = len(self._concept)
            scenes = Scenes(
                concept=self._concept,
                style=self._style,
                background=torch.full((num,), background),
                scale=torch.full((num,), 0.9),
                turn=self._turn,
                shift=torch.zeros(num, 2),
                mirrored=self._mirrored,
            )
            parts = [render(scenes[index], self._icons, GALLERY_SIZE) for index in torch.arange(num).split(96)]
            self._crops[background] = torch.cat([crop_things(part)[0] for part in parts])
        return self._crops[background]


def background_colours(pictures: torch.Tensor) -> torch.Tensor:
    """The index of the background nearest to the median of each picture's border."""
    palette = torch.tensor(list(BACKGROUNDS.values())) / 127.5 - 1
    return torch.cdist(_border_median(pictures), palette).argmin(dim=1)


def crop_things(pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cuts each picture to the square around what differs from its background.

    Returns:
        The crops, (n, 3, 24, 24), and the boxes they were cut around, (n, 4), as shares of the picture.
    """
    size = pictures.shape[-1]
    colours = _border_median(pictures)
    thing = (pictures - colours[:, :, None, None]).abs().amax(dim=1) > FOREGROUND_ABOVE  # (n, size, size)
    crops, boxes = [], []
    for picture, mask, colour in zip(pictures, thing, colours, strict=True):
        top, bottom = _extent(mask.sum(dim=1))
        left, right = _extent(mask.sum(dim=0))
        side = max(bottom - top, right - left)
        square = colour[:, None, None].expand(3, side, side).clone()
        down, across = (side - (bottom - top)) // 2, (side - (right - left)) // 2
        square[:, down : down + bottom - top, across : across + right - left] = picture[:, top:bottom, left:right]
        crops.append(F.interpolate(square[None], CROP_SIZE, mode="bilinear", antialias=True)[0])
        boxes.append((left / size, top / size, right / size, bottom / size))
    return torch.stack(crops), torch.tensor(boxes)


def _border_median(pictures: torch.Tensor) -> torch.Tensor:
    """(n, 3): the median colour of the outermost pixels, which a thing that touches one side does not change."""
    rows = torch.cat((pictures[:, :, 0], pictures[:, :, -1]), dim=2)
    columns = torch.cat((pictures[:, :, :, 0], pictures[:, :, :, -1]), dim=2)
    return torch.cat((rows, columns), dim=2).median(dim=2).values


def _extent(counts: torch.Tensor) -> tuple[int, int]:
    """First and one past the last line of the foreground, less the outermost `TRIM` of it on either side.

    The decoder leaves specks beside things on saturated backgrounds; a speck must not move the box.
    """
    share = counts / counts.sum().clamp(min=1)
    until = share.cumsum(dim=0)
    lines = ((until > TRIM) & (until - share < 1 - TRIM)).nonzero().flatten()
    return (int(lines[0]), int(lines[-1]) + 1) if counts.any() else (0, len(counts))


def mean_distance(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Root mean square difference of pictures, as a share of the range from black to white: (n,)."""
    return (first - second).square().flatten(1).mean(dim=1).sqrt() / 2
