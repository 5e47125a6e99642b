"""Files a run writes."""

import json
import re
from contextlib import closing
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
from PIL import Image

from runner.media.arrays import save_array
from runner.media.image import save_picture
from runner.media.pixels import pixel_hash, pixels
from runner.media.sheet import contact_sheet
from runner.media.video import save_video
from runner.output.write import slug, write_whole


def _text(path: Path, text: str) -> None:
    path.write_text(text)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("A Cat, sitting!", "a-cat-sitting"),
        ("../../etc/passwd", "etc-passwd"),
        ("..", "untitled"),
        ("", "untitled"),
        ("\U0001f600", "untitled"),
        ("Caf\u00e9 \U0001f600 \u2014 \u0130zmir", "cafe-izmir"),
        ("a\x00b\nc\td\x7f", "a-b-c-d"),
        ("\u6f22\u5b57", "untitled"),
        (207, "207"),
        ("x" * 10_000, "x" * 40),
    ],
)
def test_slug(prompt: str | int, expected: str) -> None:
    assert slug(prompt) == expected


def test_slug_stays_safe_at_any_limit() -> None:
    for limit in range(12):
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", slug("ab cd/ef.gh", limit))


def test_write_whole_leaves_nothing_on_failure(tmp_path: Path) -> None:
    def fail(temp: Path) -> None:
        assert temp.name.startswith(".") and temp.suffix == ".png" and temp.parent == tmp_path / "deep"
        temp.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "deep" / "a.png", fail)
    assert list((tmp_path / "deep").iterdir()) == []


def test_write_whole_replaces_or_keeps(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_whole(path, lambda temp: _text(temp, "old"))
    with pytest.raises(FileNotFoundError):
        write_whole(path, lambda temp: None)
    assert path.read_text() == "old"
    write_whole(path, lambda temp: _text(temp, "new"))
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_pixels() -> None:
    image = Image.new("RGB", (4, 3), (1, 2, 3))
    assert pixels(image).shape == (3, 4, 3) and pixels(image).dtype == np.uint8
    assert pixels(image.convert("L")).shape == (3, 4, 1)
    assert pixels(image.convert("P")).shape == (3, 4, 3)
    assert pixels([image, image]).shape == (2, 3, 4, 3)
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    assert pixels(array).flags.c_contiguous and np.array_equal(pixels(array), array)
    for wrong in ("text", [], None, image.convert("F"), [image, image.resize((2, 2))]):
        with pytest.raises(ValueError, match="pixels"):
            pixels(wrong)


def test_pixel_hash_sees_dtype_shape_and_bytes() -> None:
    array = np.zeros((2, 3), np.uint8)
    others = [array.reshape(3, 2), array.astype(np.int8), array + np.uint8(1)]
    assert len({pixel_hash(one) for one in [array, *others]}) == 4
    assert pixel_hash(array) == pixel_hash(array.copy(order="F"))


def test_picture_round_trips_its_recipe(tmp_path: Path) -> None:
    recipe = {"prompt": "caf\u00e9 \U0001f600 \ud800", "seed": np.int64(3), "call": {"steps": 2}, "model": Path("m")}
    image = Image.new("RGB", (5, 4), (9, 8, 7))
    save_picture(tmp_path / "sub" / "a.png", image, recipe)
    with Image.open(tmp_path / "sub" / "a.png") as back:
        assert json.loads(back.info["recipe"]) == {**recipe, "seed": 3, "model": "m"}
        assert back.info["prompt"] == "caf\u00e9 \U0001f600 ?"
        assert np.array_equal(pixels(back), pixels(image))


@pytest.mark.parametrize(("size", "written"), [((32, 24), (32, 24)), ((33, 17), (34, 18))])
def test_video(tmp_path: Path, size: tuple[int, int], written: tuple[int, int]) -> None:
    frames = [Image.new("RGB", size, (20 * index, 50, 90)) for index in range(5)]
    path = tmp_path / "a.mp4"
    recipe = {"prompt": "a 'cat'; x=1\n\U0001f600", "seed": 3}
    save_video(path, frames, 7, recipe)
    with closing(imageio.get_reader(path, format="FFMPEG")) as reader:
        assert sum(1 for _ in reader.iter_data()) == 5
        assert reader.get_meta_data()["fps"] == 7
        assert tuple(reader.get_meta_data()["size"]) == written
        assert "yuv420p" in reader.get_meta_data()["pix_fmt"]
    assert json.dumps(recipe).encode() in path.read_bytes()
    assert list(tmp_path.iterdir()) == [path]


def test_video_with_a_recipe_too_long_for_a_comment(tmp_path: Path) -> None:
    save_video(tmp_path / "a.mp4", [Image.new("RGB", (16, 16))], 1, {"prompt": "x" * 200_000})
    assert (tmp_path / "a.mp4").stat().st_size < 100_000


def test_video_errors(tmp_path: Path) -> None:
    frame = Image.new("RGB", (16, 16))
    for frames, fps, says in (([], 8, "no frames"), ([frame], 0, "fps"), ([frame, frame.resize((8, 8))], 8, "frame 1")):
        with pytest.raises(ValueError, match=says):
            save_video(tmp_path / "a.mp4", frames, fps, {})
    assert list(tmp_path.iterdir()) == []


def test_array(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    save_array(tmp_path / "a.npy", array)
    assert np.array_equal(np.load(tmp_path / "a.npy"), array)


def test_contact_sheet(tmp_path: Path) -> None:
    save_picture(tmp_path / "a.png", Image.new("RGB", (64, 64), (255, 0, 0)), {})
    save_picture(tmp_path / "b.png", Image.new("RGB", (600, 20), (0, 255, 0)), {})
    save_video(tmp_path / "c.mp4", [Image.new("RGB", (16, 16), (0, 0, 255))], 4, {})
    save_array(tmp_path / "d.npy", np.zeros(3))
    captions = ["caf\u00e9 \U0001f600 \u6f22\n\x00 x", "w" * 10_000, "", "numbers"]
    names = ["a.png", "b.png", "c.mp4", "d.npy"]
    contact_sheet(tmp_path / "sheet.png", [([tmp_path / n], c) for n, c in zip(names, captions, strict=True)])
    with Image.open(tmp_path / "sheet.png") as sheet:
        array = pixels(sheet)
    assert tuple(array[0, 0]) == (255, 255, 255)
    red = (array == (255, 0, 0)).all(axis=2)
    assert red.sum() >= 128 * 128
    assert (array == (0, 255, 0)).all(axis=2).any()
    assert (array[..., 2].astype(int) - array[..., 0] > 150).any()
    assert (array.sum(axis=2) < 150).any()  # captions


def test_contact_sheet_limit_and_nothing_to_show(tmp_path: Path) -> None:
    save_picture(tmp_path / "a.png", Image.new("RGB", (8, 8)), {})
    contact_sheet(tmp_path / "one.png", [([tmp_path / "a.png"], "a")] * 9, limit=1)
    contact_sheet(tmp_path / "nine.png", [([tmp_path / "a.png"], "a")] * 9)
    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "nine.png") as nine:
        assert nine.width > 2 * one.width and nine.height > 2 * one.height
    contact_sheet(tmp_path / "none.png", [])
    assert not (tmp_path / "none.png").exists()
