"""Every field of every output class is told apart, written, and named."""

import ast
import dataclasses
import inspect
import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from PIL import Image

from runner.config import Format, JobConfig
from runner.errors import UserError
from runner.media.outputs import CLIPS, PICTURES, SOUNDS, told_apart
from runner.media.pixels import pixel_hash
from runner.media.save import Writing, save, to_write
from runner.output.folder import Folder
from runner.output.lines import ManifestLine
from runner.output.manifest import is_whole
from runner.request import Request

# Fields of today's classes that are no pictures, clips or sounds. A field that is in neither list is to be looked at:
# it would be written as an array, which may not be what it is.
NUMBERS = {
    "action", "keyframes", "c2w", "latent", "coords_nm", "residue_type", "emit_mask", "atom_mask", "bb_ca",
    "local_latents", "clean_bb_ca", "clean_local_latents", "sequence_logits", "insertion_logits",
}  # fmt: skip
VALUES = {"nsfw_content_detected", "revised_prompts", "keyframe_positions"}
REQUEST = Request("a cat", 3, stem="0000-a-cat-3", id="f00d")


class Sounding:
    """A pipeline, as far as its outputs' files go: of 25 frames and 8,000 samples a second."""

    sample_rate = 8_000

    def __call__(self, prompt: str, frame_rate: float = 25.0) -> None: ...


def picture(mode: str = "RGB", size: tuple[int, int] = (6, 4), shade: int = 0) -> Image.Image:
    gray = np.arange(size[0] * size[1], dtype=np.uint8).reshape(size[1], size[0]) * 9 + shade
    return Image.fromarray(
        np.stack([gray, gray + 1, gray + 2, gray + 3], axis=-1)[..., : 4 if mode[-1] == "A" else 3]
    ).convert(mode)


def saved(output: Any, folder: Path, stock: Any = None, **job: Any) -> ManifestLine:
    writing = Writing(JobConfig(**job), stock if stock is not None else Sounding())
    line = ManifestLine(**REQUEST.described(), **save(to_write(output, writing), REQUEST, Folder(folder), writing))
    assert is_whole(folder, line) and line.all_files[0].file == line.file
    assert ManifestLine.from_json(json.loads(json.dumps(line.to_json()))) == line
    assert len({file.file for file in line.files}) == len(line.files) == len(list((folder / "images").iterdir()))
    return line


def names(line: ManifestLine) -> list[str]:
    return [Path(file.file).name for file in line.files]


def output_classes() -> dict[str, type]:
    """Of every pipeline with a transformer, by the calls in its own `__call__`."""
    found: dict[str, type] = {}
    for name in dir(diffusers):
        cls = getattr(diffusers, name) if name.endswith("Pipeline") else None
        if not (inspect.isclass(cls) and issubclass(cls, DiffusionPipeline)):
            continue
        if not any("transformer" in parameter for parameter in inspect.signature(cls.__init__).parameters):
            continue
        scope = vars(sys.modules[cls.__module__])
        source = ast.parse(textwrap.dedent(inspect.getsource(cls.__call__)))
        called = {n.func.id for n in ast.walk(source) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
        classes = [scope[one] for one in called if inspect.isclass(scope.get(one))]
        outputs = {one.__name__: one for one in classes if issubclass(one, BaseOutput)}
        assert outputs, f"{name} calls no output class"
        found |= outputs
    return found


CLASSES = output_classes()


def test_all_output_classes_are_found() -> None:
    assert len(CLASSES) > 40 and {"AudioPipelineOutput", "RFD4ProteinaPipelineOutput"} < set(CLASSES)


def kinds_of(name: str) -> Iterator[Any]:
    """Values of each type that a field of this name may have."""
    clip = np.linspace(0, 1, 1 * 3 * 4 * 6 * 3, dtype=np.float32).reshape(1, 3, 4, 6, 3)
    if name in PICTURES:
        yield from ([picture()], [[picture(), picture()]], clip[0, :1], torch.from_numpy(clip[0, :1]).movedim(-1, 1))
    elif name in CLIPS:
        frames = [picture(), picture(), picture()]
        yield from (frames, [frames], clip, clip[0], torch.from_numpy(clip).movedim(-1, 2), [picture()])
    elif name in SOUNDS:
        sound = np.linspace(-1, 1, 2 * 800, dtype=np.float32).reshape(1, 2, 800)
        yield from (sound, sound[0], torch.from_numpy(sound).bfloat16(), torch.from_numpy(sound[0, :1]), None)
    elif name in NUMBERS:
        yield from (torch.ones(1, 3, 2), np.ones((1, 2), dtype=bool), [torch.ones(2), torch.ones(3)], None)
    else:
        yield from ([False], ["a cat"], [0, 8], None, [np.bool_(True)])


@pytest.mark.parametrize("cls", CLASSES.values(), ids=CLASSES)
def test_every_field_of_every_output_class_is_known_and_told(cls: Any, tmp_path: Path) -> None:
    fields = [field.name for field in dataclasses.fields(cls)]
    unknown = set(fields) - {*PICTURES, *CLIPS, *SOUNDS, *NUMBERS, *VALUES}
    assert not unknown, f"{cls.__name__}: decide what {unknown} is, in runner/media/outputs.py or in the lists here"
    given = {name: next(kinds_of(name)) for name in fields}
    line = saved(cls(**given), tmp_path)
    assert told(line) == set(fields) and not line.left_out


@pytest.mark.parametrize("name", ["images", "frames", "audio", "c2w", "nsfw_content_detected"])
def test_every_kind_of_value_of_a_field_is_told(name: str, tmp_path: Path) -> None:
    beside = {"rgb": [picture()]}
    for index, value in enumerate(kinds_of(name)):
        line = saved({**beside, name: value}, tmp_path / str(index))
        assert told(line) == {"rgb", name} - ({name} if value is None else set()), type(value)


def told(line: ManifestLine) -> set[str]:
    return (
        {file.field for file in line.files}
        | {file.sound_field for file in line.files if file.sound_field}
        | {*line.values}
    )


@pytest.mark.parametrize("cls", CLASSES.values(), ids=CLASSES)
def test_latents_of_every_output_class_are_one_file(cls: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    fields = [field.name for field in dataclasses.fields(cls)]
    given = {name: ["a text"] if name in VALUES else torch.full((1, 4, 2), len(name) / 8).bfloat16() for name in fields}
    line = saved(cls(**given), tmp_path, format=Format.latent)
    tensors = {name: value for name, value in given.items() if name not in VALUES}
    assert names(line) == ["0000-a-cat-3.safetensors"] and set(line.values) == set(fields) & VALUES
    back = load_file(tmp_path / line.file)
    assert set(back) == set(tensors) and all(torch.equal(back[name], tensor) for name, tensor in tensors.items())


def test_one_picture_is_one_png(tmp_path: Path) -> None:
    for mode, channels in (("RGB", 3), ("RGBA", 4), ("L", 1), ("P", 3), ("1", 3), ("LA", 4)):
        line = saved({"images": [picture(mode)]}, tmp_path / mode)
        assert names(line) == ["0000-a-cat-3.png"]
        assert line.files[0].shape == [4, 6, channels] and line.files[0].kind == "picture"
        with Image.open(tmp_path / mode / line.file) as back:
            assert back.tobytes() == picture(mode).tobytes() and back.mode == mode


def test_layers_are_numbered_pictures(tmp_path: Path) -> None:
    layers = [picture("RGBA", shade=shade) for shade in range(11)]
    line = saved({"images": [layers]}, tmp_path)
    assert names(line) == [f"0000-a-cat-3.{number:02d}.png" for number in range(1, 12)]
    assert [file.sha256 for file in line.files] == [pixel_hash(np.asarray(layer)) for layer in layers]


@pytest.mark.parametrize("mode", ["F", "I", "I;16"])
def test_pictures_of_more_than_eight_bits_keep_their_numbers(mode: str, tmp_path: Path) -> None:
    image = Image.fromarray(np.arange(6, dtype={"F": "f4", "I": "i4", "I;16": "u2"}[mode]).reshape(2, 3) * 4000)
    assert image.mode == mode
    line = saved({"images": [image]}, tmp_path)
    assert names(line) == ["0000-a-cat-3.npy"] and "eight bits" in line.files[0].note
    assert np.array_equal(np.load(tmp_path / line.file), np.asarray(image))


def test_light_beyond_white_is_no_clip_but_numbers(tmp_path: Path) -> None:
    frames = torch.rand(1, 3, 3, 4, 6) * 8
    line = saved({"frames": frames}, tmp_path)
    assert names(line) == ["0000-a-cat-3.npy"] and "0 to 1" in line.files[0].note
    assert np.array_equal(np.load(tmp_path / line.file), frames[0].numpy())


def test_one_frame_is_a_picture(tmp_path: Path) -> None:
    assert names(saved({"frames": [[picture()]]}, tmp_path)) == ["0000-a-cat-3.png"]


def test_a_clip_has_the_frame_rate_of_its_request_else_of_its_pipeline_else_of_the_job(tmp_path: Path) -> None:
    class Silent:
        def __call__(self, prompt: str) -> None: ...

    frames = {"frames": [[picture(), picture()]]}
    assert saved(frames, tmp_path / "own").files[0].fps == 25
    assert saved(frames, tmp_path / "none", Silent()).files[0].fps == 16
    assert saved(frames, tmp_path / "job", Silent(), fps=7.5).files[0].fps == 7.5


def test_clip_and_sound_are_one_file_and_so_are_numbers_of_both(tmp_path: Path) -> None:
    sound = torch.rand(1, 2, 4000)
    output = {"frames": [[picture(shade=shade) for shade in range(4)]], "audio": sound}
    line = saved(output, tmp_path / "auto")
    assert names(line) == ["0000-a-cat-3.mp4"]
    assert (line.files[0].sound_field, line.files[0].sampling_rate) == ("audio", 8_000)
    assert line.files[0].sound_sha256 == pixel_hash(sound[0].numpy())
    assert line.sha256 == pixel_hash(np.stack([np.asarray(frame) for frame in output["frames"][0]]))
    line = saved(output, tmp_path / "npy", format=Format.npy)
    assert names(line) == ["0000-a-cat-3.npy", "0000-a-cat-3.audio.npy"]
    assert [file.kind for file in line.files] == ["clip", "sound"]
    assert np.array_equal(np.load(tmp_path / "npy" / line.files[1].file), sound[0].numpy())


def test_sound_of_an_unknown_rate_is_kept_as_numbers(tmp_path: Path) -> None:
    class Mute:
        def __call__(self, prompt: str) -> None: ...

    output = {"frames": [[picture(), picture()]], "audio": np.ones((2, 30), dtype=np.float32)}
    line = saved(output, tmp_path, Mute())
    assert names(line) == ["0000-a-cat-3.mp4", "0000-a-cat-3.audio.npy"]
    assert "samples a second" in line.files[1].note


def test_values_go_to_the_manifest_and_what_has_no_file_is_named(tmp_path: Path) -> None:
    output = {"images": [picture()], "nsfw_content_detected": [np.bool_(False)], "odd": {1, 2}, "nothing": None}
    line = saved(output, tmp_path)
    assert line.values == {"nsfw_content_detected": [False]}
    assert list(line.left_out) == ["odd"] and "set" in line.left_out["odd"]
    assert line.to_json()["left_out"] == line.left_out


def test_a_tuple_is_told_apart_by_number(tmp_path: Path) -> None:
    line = saved(([picture()], [True], torch.ones(2)), tmp_path)
    assert names(line) == ["0000-a-cat-3.png", "0000-a-cat-3.2.npy"] and line.values == {"1": [True]}


def test_a_field_of_any_name_is_a_name_below_the_folder(tmp_path: Path) -> None:
    line = saved({"images": [picture()], "../../up": torch.ones(2)}, tmp_path)
    assert names(line) == ["0000-a-cat-3.png", "0000-a-cat-3.-up.npy"]


@pytest.mark.parametrize(
    ("output", "format", "says"),
    [
        ({"nsfw_content_detected": [True], "odd": {1}}, Format.auto, r"nsfw_content_detected, odd \(a set"),
        ({}, Format.auto, "no field is set"),
        ({"images": [picture()]}, Format.latent, "without a tensor"),
    ],
)
def test_an_output_without_a_file_is_refused(output: Any, format: Format, says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        to_write(output, Writing(JobConfig(format=format), Sounding()))
    assert not list(tmp_path.iterdir())


def test_arrays_of_objects_are_left_out_with_the_reason() -> None:
    told = told_apart({"images": [picture()], "boxes": np.array([{1}], dtype=object)})
    assert "boxes" in told.left_out
