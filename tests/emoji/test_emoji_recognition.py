"""Recognition sees through pose and background, and the measures count what it saw."""

import pytest
import torch

from scripts.emoji.measures import Asked, background_prompts, share_placed, share_right, variety
from scripts.emoji.pictures import Scenes, draw_scenes, render
from scripts.emoji.recognition import Gallery, Recognised, mean_distance

NUM_CONCEPTS = 4


@pytest.fixture(scope="module")
def icons() -> torch.Tensor:
    """Four shapes, each in three colours: (3 styles, 4 concepts, 128, 128, 4)."""
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 128), torch.linspace(-1, 1, 128), indexing="ij")
    shapes = [
        rows**2 + columns**2 < 0.7,
        (rows.abs() < 0.2) & (columns.abs() < 0.8),
        (rows.abs() < 0.25) ^ (columns.abs() < 0.25),
        (rows > 2 * columns.abs() - 0.8) & (rows < 0.7),
    ]
    colours = torch.tensor([[120, 60, 20], [10, 90, 90], [90, 10, 120]], dtype=torch.uint8)
    icons = torch.zeros(3, NUM_CONCEPTS, 128, 128, 4, dtype=torch.uint8)
    for concept, shape in enumerate(shapes):
        icons[:, concept, :, :, :3] = colours[:, None, None]
        icons[:, concept, :, :, 3] = shape * 255
    return icons


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    index = torch.arange(48)
    return draw_scenes(index % NUM_CONCEPTS, index % 3, torch.Generator().manual_seed(0))


def test_concept_style_and_background_are_recognised_in_any_pose(icons: torch.Tensor, scenes: Scenes) -> None:
    pictures = render(scenes, icons)
    noisy = pictures + 0.03 * torch.randn(pictures.shape, generator=torch.Generator().manual_seed(1))
    seen = Gallery(icons).recognise(noisy)
    assert torch.equal(seen.concept, scenes.concept)
    assert torch.equal(seen.style, scenes.style)
    assert torch.equal(seen.background, scenes.background)


def test_an_empty_picture_is_recognised_as_something(icons: torch.Tensor) -> None:
    seen = Gallery(icons).recognise(torch.ones(1, 3, 64, 64))
    assert seen.box.tolist() == [[0, 0, 1, 1]]


def test_share_right_asks_for_every_named_property() -> None:
    seen = Recognised(torch.tensor([1, 2]), torch.tensor([0, 0]), torch.tensor([3, 4]), torch.zeros(2, 4))
    asked = [Asked("", concept=1, background=3), Asked("", concept=2, background=3)]
    assert share_right(asked, seen, "concept") == 1
    assert share_right(asked, seen, "concept", "background") == 0.5


def test_placing_compares_small_with_large_and_left_with_right() -> None:
    asked = [Asked("", 0, place=place) for place in ("small", "large", "left", "right")]
    boxes = torch.tensor([[0.4, 0.4, 0.6, 0.6], [0, 0, 1, 1], [0.5, 0, 1, 1], [0, 0, 0.5, 1]])
    zero = torch.zeros(4, dtype=torch.int64)
    assert share_placed(asked, Recognised(zero, zero, zero, boxes)) == 0.5


def test_variety_of_a_model_that_ignores_its_seeds_is_nil() -> None:
    pictures = torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1, 1).expand(2, 3, 3, 8, 8)
    measured = variety(pictures, torch.zeros(2, 3, dtype=torch.int64))
    assert (measured.between_seeds, measured.ratio, measured.visible, measured.styles) == (0, 0, 0, 1)
    assert measured.between_concepts == 1


def test_distance_is_a_share_of_the_range() -> None:
    assert mean_distance(torch.ones(1, 3, 2, 2), -torch.ones(1, 3, 2, 2)).item() == 1


def test_trained_and_held_out_backgrounds_share_concepts_but_no_pair() -> None:
    held_out, trained = (background_prompts(held_out=value) for value in (True, False))
    assert [one.concept for one in held_out] == [one.concept for one in trained]
    pairs = {(one.concept, one.background) for one in held_out}
    assert pairs.isdisjoint((one.concept, one.background) for one in trained)
