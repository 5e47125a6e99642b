"""A result has a small picture where its own files would be slow to look through."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runner.config import JobConfig
from runner.media.save import Writing, save, to_write
from runner.output.folder import Folder
from runner.request import Request

COLOURS = np.zeros((1200, 800, 3), dtype=np.uint8)
COLOURS[:600, :, 0], COLOURS[600:, :, 2] = 255, 255


class Output(dict[str, Any]):
    """Of a pipeline: fields by name."""


def saved(folder: Path, output: Any, **settings: Any) -> Path:
    """Where the small picture would be."""
    job = JobConfig(**settings)
    writing = Writing(job, _Stock())
    save(to_write(output, writing), Request("a", stem="0000-a-0"), Folder(folder), writing)
    return Folder(folder).thumbnail("0000-a-0")


class _Stock:
    sample_rate = 8000

    def __call__(self) -> None: ...


@pytest.fixture(autouse=True)
def images(tmp_path: Path) -> None:
    Folder(tmp_path).images.mkdir()


def test_of_a_large_picture(tmp_path: Path) -> None:
    with Image.open(saved(tmp_path, Output(images=[Image.fromarray(COLOURS)]))) as small:
        assert small.size == (200, 300) and small.getpixel((100, 10))[0] > 240 and small.getpixel((100, 290))[2] > 240


def test_what_is_transparent_is_on_a_pale_ground(tmp_path: Path) -> None:
    with Image.open(saved(tmp_path, Output(images=[Image.new("RGBA", (1024, 1024), (0, 0, 0, 0))]))) as small:
        assert min(small.getpixel((9, 9))) > 200


def test_a_small_picture_stands_for_itself(tmp_path: Path) -> None:
    assert not saved(tmp_path, Output(images=[Image.new("RGB", (64, 64))])).exists()


def test_of_a_clip_its_middle_frame(tmp_path: Path) -> None:
    frames = np.zeros((1, 5, 64, 64, 3), dtype=np.float32)
    frames[0, 2] = 1.0
    with Image.open(saved(tmp_path, Output(frames=frames))) as small:
        assert small.size == (64, 64) and min(small.getpixel((32, 32))) > 240


def test_of_a_sound_its_waveform(tmp_path: Path) -> None:
    loud_at_the_end = np.concatenate([np.zeros(4000), np.sin(np.arange(4000))]).astype(np.float32)[None, None]
    with Image.open(saved(tmp_path, Output(audios=loud_at_the_end))) as small:
        column = [np.asarray(small.crop((x, 0, x + 1, small.height)).convert("L")) for x in (20, small.width - 20)]
        assert (column[0] < 160).sum() < 10 < 100 < (column[1] < 160).sum()


def test_none_where_there_is_no_report(tmp_path: Path) -> None:
    assert not saved(tmp_path, Output(images=[Image.fromarray(COLOURS)]), report=False).exists()


def test_a_place_that_cannot_be_written_costs_only_the_small_picture(tmp_path: Path) -> None:
    (tmp_path / "thumbnails").touch()
    saved(tmp_path, Output(images=[Image.fromarray(COLOURS)]))
    assert (tmp_path / "images" / "0000-a-0.png").exists()
