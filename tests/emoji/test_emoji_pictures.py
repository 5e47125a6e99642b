"""Scenes keep held-out pairs out, and rendering puts things where a scene says."""

import torch

from scripts.emoji.concepts import BACKGROUNDS, CONCEPTS, STYLES, held_out_pairs
from scripts.emoji.pictures import MAX_SCALE, MIN_SCALE, Scenes, draw_icons, render


def scene(*, scale: float = 1.0, shift: tuple[float, float] = (0.0, 0.0), mirrored: bool = False) -> Scenes:
    """One scene of the first icon on blue."""
    zero = torch.zeros(1, dtype=torch.int64)
    blue = torch.tensor([list(BACKGROUNDS).index("blue")])
    return Scenes(
        concept=zero,
        style=zero,
        background=blue,
        scale=torch.tensor([scale]),
        turn=torch.zeros(1),
        shift=torch.tensor([shift]),
        mirrored=torch.tensor([mirrored]),
    )


def square_icon() -> torch.Tensor:
    """A black square in the left half of the frame: (1 style, 1 concept, 128, 128, 4)."""
    icon = torch.zeros(1, 1, 128, 128, 4, dtype=torch.uint8)
    icon[:, :, 32:96, 0:64, 3] = 255
    return icon


def coverage(picture: torch.Tensor) -> torch.Tensor:
    """(64, 64) bool: where the black square is."""
    return picture[0, 2] < -0.5


def test_names_of_concepts_are_unique() -> None:
    names = [name for concept in CONCEPTS for name in concept.names]
    assert len(names) == len(set(names))


def test_held_out_pairs_are_never_drawn_and_never_white() -> None:
    scenes = draw_icons(20, torch.Generator().manual_seed(0))
    drawn = set(zip(scenes.concept.tolist(), scenes.background.tolist(), strict=True))
    assert not drawn & held_out_pairs()
    assert all(background != 0 for _, background in held_out_pairs())
    assert len(drawn) > 0.9 * len(CONCEPTS) * len(BACKGROUNDS) - len(held_out_pairs())


def test_every_icon_is_drawn_equally_often() -> None:
    scenes = draw_icons(3, torch.Generator().manual_seed(0))
    counts = torch.bincount(scenes.style * len(CONCEPTS) + scenes.concept)
    assert counts.tolist() == [3] * (len(STYLES) * len(CONCEPTS))
    assert scenes.scale.min() >= MIN_SCALE and scenes.scale.max() <= MAX_SCALE


def test_a_picture_is_its_icon_over_a_flat_background() -> None:
    picture = render(scene(), square_icon())
    assert picture.shape == (1, 3, 64, 64)
    assert picture.min() >= -1 and picture.max() <= 1
    blue = torch.tensor(BACKGROUNDS["blue"]) / 127.5 - 1
    torch.testing.assert_close(picture[0, :, 0, 0], blue)
    assert coverage(picture).nonzero().amin(0).tolist() == [16, 0]
    assert coverage(picture).nonzero().amax(0).tolist() == [47, 31]


def test_scale_is_the_share_of_the_width() -> None:
    covered = coverage(render(scene(scale=0.5), square_icon()))
    assert covered.sum() == 16 * 16


def test_shift_is_in_half_widths_to_the_right_and_down() -> None:
    rows, columns = coverage(render(scene(scale=0.5, shift=(0.25, 0.5)), square_icon())).nonzero().T
    assert (columns.min(), rows.min()) == (16 + 8, 24 + 16)


def test_mirroring_moves_the_left_half_to_the_right() -> None:
    plain, mirrored = (coverage(render(scene(mirrored=mirror), square_icon())) for mirror in (False, True))
    assert torch.equal(plain.flip(1), mirrored)
