"""What is to be seen of each kind of output on the contact sheet."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from runner.config import Audio
from runner.media.arrays import save_array, save_latents
from runner.media.audio import save_sound
from runner.media.image import save_picture
from runner.media.tile import SIDE, mosaic, tile, waveform
from runner.media.video import Sound, save_video

COLOURS = [(220, 30, 30), (30, 200, 30), (30, 30, 220), (220, 220, 30)]
RATE = 8_000
BEEP = np.sin(np.arange(RATE) / 5, dtype=np.float32)[None] * np.linspace(0, 1, RATE, dtype=np.float32)


def shown(files: list[Path]) -> np.ndarray:
    picture = tile(files)
    assert picture is not None and picture.mode == "RGB" and max(picture.size) <= SIDE
    return np.asarray(picture).astype(int)


def has(array: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool((np.abs(array - colour).max(axis=-1) < 40).any())


def frames(count: int, size: tuple[int, int]) -> list[Image.Image]:
    """Of one colour each quarter of the time."""
    return [Image.new("RGB", size, COLOURS[index * 4 // count]) for index in range(count)]


@pytest.mark.parametrize("size", [(64, 36), (36, 64), (48, 48)])
def test_a_clip_shows_frames_of_its_whole_length(size: tuple[int, int], tmp_path: Path) -> None:
    save_video(tmp_path / "a.mp4", frames(16, size), 8, {})
    array = shown([tmp_path / "a.mp4"])
    assert all(has(array, colour) for colour in COLOURS)


def test_a_clip_with_sound_shows_both(tmp_path: Path) -> None:
    save_video(tmp_path / "silent.mp4", frames(8, (64, 36)), 8, {})
    save_video(tmp_path / "a.mp4", frames(8, (64, 36)), 8, {}, sound=Sound(BEEP, RATE))
    silent, array = shown([tmp_path / "silent.mp4"]), shown([tmp_path / "a.mp4"])
    assert len(array) > len(silent) and has(array[-30:], (42, 111, 176)) and not has(silent, (42, 111, 176))


@pytest.mark.parametrize("format", Audio)
def test_a_sound_is_as_high_as_it_is_loud(format: Audio, tmp_path: Path) -> None:
    file = tmp_path / f"a.{format.value}"
    save_sound(file, np.concatenate([BEEP, BEEP]), RATE, {}, format)
    is_blue = (np.abs(shown([file])[: SIDE // 2] - (42, 111, 176)).max(axis=-1) < 40).sum(axis=0)
    assert is_blue[:20].mean() < 10 and is_blue[-20:].mean() > 100


def test_silence_and_hardly_any_samples_are_drawn() -> None:
    for samples in (np.zeros(1000), np.zeros(0), np.array([0.5, -0.5])):
        assert waveform(samples.astype(np.float32), 64, 32).size == (64, 32)


def test_layers_are_side_by_side_and_told_from_the_sheet(tmp_path: Path) -> None:
    files = []
    for index, colour in enumerate(COLOURS):
        layer = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
        layer.paste((*colour, 255), (8, 8, 24, 24))
        files.append(tmp_path / f"{index}.png")
        save_picture(files[-1], layer, {})
    array = shown(files)
    assert all(has(array, colour) for colour in COLOURS) and tuple(array[2, 2]) != (255, 255, 255)


def test_two_square_pictures_are_side_by_side() -> None:
    assert mosaic([Image.new("RGB", (8, 8))] * 2, SIDE).size == (2 * 120 + 4, 120)


def test_arrays_and_latents_say_their_shape(tmp_path: Path) -> None:
    save_array(tmp_path / "a.npy", np.zeros((2, 3)))
    save_array(tmp_path / "b.npy", np.zeros((2, 4)))
    save_latents(tmp_path / "a.safetensors", {"frames": torch.zeros(2, 3)}, {})
    array, other, latents = (shown([tmp_path / name]) for name in ("a.npy", "b.npy", "a.safetensors"))
    assert (array != other).any() and (array != latents).any()


def test_what_cannot_be_shown_leaves_its_cell_empty(tmp_path: Path) -> None:
    for name in ("gone.png", "gone.wav"):
        assert tile([tmp_path / name]) is None
    (tmp_path / "odd.mp4").write_bytes(b"odd")
    assert tile([tmp_path / "odd.mp4"]) is None and tile([]) is None
