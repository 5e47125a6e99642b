"""A file's content is part of its request's id and of the recipe; where it is, and what it is called, are not."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from runner.config import load_config
from runner.inputs.decode import InputLost, decoded
from runner.inputs.input_file import identity
from runner.job.requests import read_job, requests_of, with_inputs
from runner.job.waves import alike_key
from runner.output.recipe import recipe_of
from runner.pipeline.open import open_pipeline
from runner.pipeline.pipeline import Pipeline
from runner.world import World
from tests import tiny
from tests.runner.inputs.input_files import KINDS, draw, draw_turned, film, is_same, read
from tests.tiny.other_class import for_class

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pipeline(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    path = for_class(tiny.build("flux", tiny_root), "FluxImg2ImgPipeline", tmp_path_factory.mktemp("classes"))
    return open_pipeline(load_config(None, [f"model.path={path}"]), World(0, 1, CPU))


def planned(pipeline: Pipeline, *words: str) -> tuple[list[str], dict[str, Any]]:
    """The ids of the job's requests, and its recipe."""
    config = load_config(None, words)
    prompts, call = with_inputs(read_job(config.job), config.job, pipeline.arguments, None)
    requests = requests_of(prompts, config.job, pipeline, {})
    return [request.id for request in requests], recipe_of(config, {}, call)


def test_ids_change_with_the_content_and_with_nothing_else(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = draw(tmp_path / "a.png", seed=1)
    was = planned(pipeline, f"job.call.image={file}", "job.prompt=a fox")
    monkeypatch.chdir(tmp_path)
    other = draw_turned(tmp_path / "b.jpg")
    asked = tmp_path / "asked"
    shutil.copytree(tmp_path, asked, ignore=shutil.ignore_patterns("asked"))
    (asked / "a.png").rename(asked / "cat")  # the content says what it is
    (asked / "p.jsonl").write_text(json.dumps({"prompt": "a fox", "image": {"file": "cat"}}))
    (tmp_path / "p.csv").write_text("prompt,image\na fox,asked/../a.png\n")
    for words in (
        ["job.call.image=a.png", "job.prompt=a fox"],
        ["job.call.image={file: ./asked/cat}", "job.prompt=a fox"],
        ["job.prompts=asked/p.jsonl"],
        ["job.prompts=p.csv"],
    ):
        assert planned(pipeline, *words)[0] == was[0]
    assert planned(pipeline, "job.call.image=asked/cat", "job.prompt=a fox")[1] == was[1], "the recipe too"
    file.touch()
    assert planned(pipeline, "job.call.image=a.png", "job.prompt=a fox") == was
    ids = {*was[0]}
    for image in (other, "{file: a.png, mode: L}"):
        ids |= {*planned(pipeline, f"job.call.image={image}", "job.prompt=a fox")[0]}
    draw(file, seed=2)
    now = planned(pipeline, "job.call.image=a.png", "job.prompt=a fox")
    assert len(ids | {*now[0]}) == 4 and now[1] != was[1]


def test_a_job_without_files_keeps_its_ids(pipeline: Pipeline) -> None:
    """Those of folders that were filled before there were any."""
    call = {"strength": 0.5, "sigmas": [1.0, 0.5], "joint_attention_kwargs": {"scale": 1}}
    assert identity(call) == call


@pytest.mark.slow
def test_ten_thousand_files_are_planned_in_seconds_and_read_when_their_request_comes(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    """Loose: it fails when pixels are decoded, or each file is looked at for each request."""
    content = draw(tmp_path / "0.png").read_bytes()
    for number in range(10_000):
        (tmp_path / f"{number}.png").write_bytes(content)
    prompts = tmp_path / "p.csv"
    prompts.write_text("prompt,image,seed\n" + "".join(f"a fox,{n}.png,{n}\n" for n in range(10_000)))
    start = time.perf_counter()
    config = load_config(None, [f"job.prompts={prompts}"])
    planned, _ = with_inputs(read_job(config.job), config.job, pipeline.arguments, None)
    requests = requests_of(planned, config.job, pipeline, {})
    seconds = time.perf_counter() - start
    print(f"\n{seconds:.2f} s")
    assert len(requests) == 10_000 and seconds < 30
    (tmp_path / "9999.png").unlink()
    assert decoded(requests[0].call, CPU)["image"].size == (24, 16)
    with pytest.raises(InputLost, match=r"9999\.png: cannot be read any more"):
        decoded(requests[-1].call, CPU)


def test_a_file_that_changes_while_the_job_runs_is_not_read(tmp_path: Path) -> None:
    for kind, write in (("picture", draw), ("video", film)):
        file = write(tmp_path / KINDS[kind].file)
        (prompt,) = read(KINDS[kind], f"job.call.{KINDS[kind].argument}={file}", "job.prompt=a fox")
        write(file, seed=9)
        with pytest.raises(InputLost, match="has changed since the job began; start it again"):
            decoded(prompt.call, CPU)


def test_a_picture_keeps_its_alpha_where_it_is_asked_for(tmp_path: Path) -> None:
    from diffusers.utils import load_image
    from PIL import Image

    file = draw(tmp_path / "a.png")
    with Image.open(file) as picture:
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
        picture.save(file)
    (prompt,) = read(KINDS["picture"], f"job.call.image={{file: {file}, mode: RGBA}}", "job.prompt=a fox")
    wanted = load_image(str(file), lambda one: one.convert("RGBA"))
    assert is_same(decoded(prompt.call, CPU)["image"], wanted) and wanted.getextrema()[3] != (255, 255)


def test_a_gif_is_frames_for_a_video_and_its_first_picture_for_a_picture(tmp_path: Path) -> None:
    from diffusers.utils import load_image, load_video
    from PIL import Image

    file = tmp_path / "a.gif"
    frames = [Image.linear_gradient("L").rotate(90 * turn).convert("P") for turn in range(3)]
    frames[0].save(file, save_all=True, append_images=frames[1:])
    for kind, wanted in (("picture", load_image(str(file))), ("video", load_video(str(file)))):
        (prompt,) = read(KINDS[kind], f"job.call.{KINDS[kind].argument}={file}", "job.prompt=a fox")
        assert is_same(decoded(prompt.call, CPU)[KINDS[kind].argument], wanted)


def test_alike_is_what_makes_the_same_shapes(tmp_path: Path) -> None:
    def alike(*words: str, kind: str = "picture") -> str:
        (prompt,) = read(KINDS[kind], *(f"job.call.{word}" for word in words), "job.prompt=a fox")
        return alike_key(prompt.call)

    one, other = draw(tmp_path / "1.png", 1), draw(tmp_path / "2.jpg", 2)
    wide = draw(tmp_path / "3.png", 3, size=(32, 16))
    assert alike(f"image={one}") == alike(f"image={other}")
    upright = draw_turned(tmp_path / "4.jpg")
    sizes = [f"image={wide}", f"image={upright}", f"image=[{one}, {one}]", f"image={{file: {one}, mode: L}}"]
    assert len({alike(f"image={one}"), *map(alike, sizes)}) == 5
    short, long = film(tmp_path / "1.mp4", num_frames=3), film(tmp_path / "2.mp4", num_frames=9)
    assert alike(f"video={short}", kind="video") == alike(f"video={film(tmp_path / '3.mp4', 5, 3)}", kind="video")
    assert alike(f"video={short}", kind="video") != alike(f"video={long}", kind="video")


def test_tensors_and_sound_come_to_the_device(tmp_path: Path) -> None:
    meta = torch.device("meta")
    for kind in ("tensor", "array for a tensor", "sound"):
        file = KINDS[kind].write(tmp_path / KINDS[kind].file)
        (prompt,) = read(KINDS[kind], f"job.call.{KINDS[kind].argument}={file}", "job.prompt=a fox")
        got, wanted = decoded(prompt.call, meta)[KINDS[kind].argument], KINDS[kind].oracle(file)
        assert got.device == meta and (got.shape, got.dtype) == (wanted.shape, wanted.dtype)
