"""Jobs of sounds, latents and several files a request: the stock pipeline's numbers in the files, whole and once."""

import json
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import pytest
import soundfile
import torch
from diffusers import LTX2Pipeline
from imageio_ffmpeg import get_ffmpeg_exe
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from runner.config import load_config
from runner.errors import ExitCode, UserError
from runner.media.audio import run_ffmpeg
from runner.media.pixels import pixel_hash, pixels
from runner.run import run
from runner.world import World
from tests import tiny
from tests.census import cases_ltx2
from tests.outcomes import why
from tests.tiny.family import TinyPipeline
from tests.tiny.sound import STABLE_AUDIO

Make = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="session")
def sound_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / STABLE_AUDIO.name
    STABLE_AUDIO.build(path)
    return path


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Run a job of a family in this process; the manifest's lines."""

    def made(model: Path, family: TinyPipeline, *words: str, code: ExitCode = ExitCode.DONE) -> list[dict[str, Any]]:
        prompts = tmp_path / "prompts.jsonl"
        prompt = family.prompts[0][0] if isinstance(family.prompts[0], list) else family.prompts[0]
        prompts.write_text(json.dumps({family.prompt_argument: prompt, "seed": 1, **family.call}) + "\n")
        own = [f"model.path={model}", f"job.prompts={prompts}", f"job.output={tmp_path / 'out'}"]
        assert run(load_config(None, [*own, *words]), World(0, 1, torch.device("cpu"))) == code, why(tmp_path / "out")
        manifest = tmp_path / "out" / "manifest.jsonl"
        return [json.loads(line) for line in manifest.read_text().splitlines()] if manifest.exists() else []

    return made


def whole_output(model: Path, family: TinyPipeline, output_type: str) -> Any:
    """All that stock gives: `call_stock` takes the first field."""
    stock = tiny.load_stock(model)
    generator = torch.Generator("cpu").manual_seed(1)
    with torch.inference_mode():
        return stock(
            **family.call, **{family.prompt_argument: family.prompts[0]}, generator=generator, output_type=output_type
        )


def test_a_sound_is_a_wav_of_the_stock_samples(make: Make, sound_model: Path, tmp_path: Path) -> None:
    (line,) = make(sound_model, STABLE_AUDIO)
    samples, rate = soundfile.read(tmp_path / "out" / line["file"], dtype="float32", always_2d=True)
    expected = whole_output(sound_model, STABLE_AUDIO, "np").audios[0]
    assert line["file"].endswith(".wav") and rate == line["files"][0]["sampling_rate"] == 4_000
    assert expected.shape == (2, 2000) and np.array_equal(samples.T, expected)
    assert np.abs(samples).max() > 1, "what is beyond 1 is kept"


def test_flac_rounds_and_says_what_it_clipped(make: Make, sound_model: Path, tmp_path: Path) -> None:
    (line,) = make(sound_model, STABLE_AUDIO, "job.audio=flac")
    samples, rate = soundfile.read(tmp_path / "out" / line["file"], dtype="float64", always_2d=True)
    expected = whole_output(sound_model, STABLE_AUDIO, "np").audios[0].clip(-1, 1)
    assert line["file"].endswith(".flac") and rate == 4_000
    assert np.abs(samples.T - expected).max() <= 2**-23
    assert "clipped" in line["files"][0]["note"]


@pytest.mark.parametrize("name", ["flux", "wan", "ltx"])
def test_latents_are_those_of_stock(name: str, make: Make, tiny_root: Path, tmp_path: Path) -> None:
    family, model = tiny.FAMILIES[name], tiny.build(name, tiny_root)
    (line,) = make(model, family, "job.format=latent")
    (tensors,) = [load_file(tmp_path / "out" / line["file"])]
    assert torch.equal(tensors[family.output], whole_output(model, family, "latent")[family.output])
    with safe_open(tmp_path / "out" / line["file"], "pt") as file:
        assert json.loads(file.metadata()["recipe"])["seed"] == 1
    assert make(model, family, "job.format=latent") == [line], "and are not made again"


def test_a_folder_of_the_version_that_wrote_one_file_a_request_goes_on(
    make: Make, tiny_root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    family, model = tiny.FAMILIES["dit"], tiny.build("dit", tiny_root)
    (line,) = make(model, family)
    manifest = tmp_path / "out" / "manifest.jsonl"
    manifest.write_text(json.dumps({name: value for name, value in line.items() if name != "files"}) + "\n")
    recipe = json.loads((tmp_path / "out" / "recipe.json").read_text())
    assert recipe["job.fps"] == 16 and not {"job.video.codec", "job.video.crf", "job.audio"} & set(recipe)
    (again,) = make(model, family)
    assert "files" not in again and "1 of 1 made" in capfd.readouterr().err
    (tmp_path / "out" / line["file"]).unlink()
    (again,) = make(model, family)
    assert again["files"][0]["sha256"] == line["sha256"], "made again, and told as this version does"


@pytest.mark.parametrize(
    ("name", "word", "says"),
    [
        ("dit", "job.format=latent", "DiTPipeline has no latents"),
        ("ltx", "job.fps=24", r"makes clips of 25 frames a second: leave it out, or say job\.call\.frame_rate"),
        ("wan", "job.video.codec=x264", "Unknown encoder 'x264'; the nearest is 'libx264'"),
        ("wan", "job.video.codec=prores", "cannot write an mp4 with prores"),
        ("wan", "job.video.crf=52", "0 .best. to 51"),
        ("wan", "job.video={codec: mpeg4, crf: 20}", "mpeg4 takes none"),
    ],
)
def test_what_cannot_come_out_is_refused_before_weights_are_loaded(
    name: str, word: str, says: str, make: Make, tiny_root: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=says):
        make(tiny.build(name, tiny_root), tiny.FAMILIES[name], word)
    assert not (tmp_path / "out" / "run.json").exists()


@pytest.fixture(scope="session")
def clip_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LTX-2, which makes clips with their sound."""
    path = tmp_path_factory.mktemp("clip") / "ltx2"
    LTX2Pipeline(**cases_ltx2.parts()).save_pretrained(path)
    return path


CLIP = TinyPipeline("ltx2", lambda path: None, cases_ltx2.CALL, output="frames")


def test_a_clip_and_its_sound_are_one_file_with_the_hashes_of_stock(
    make: Make, clip_model: Path, tmp_path: Path
) -> None:
    (line,) = make(clip_model, CLIP, "job.audio=flac")
    stock = whole_output(clip_model, CLIP, "pil")
    (file,) = line["files"]
    assert file["file"].endswith(".mp4") and (file["fps"], file["sampling_rate"]) == (25, 24_000)
    assert file["sha256"] == pixel_hash(pixels(stock.frames[0]))
    assert file["sound_sha256"] == pixel_hash(stock.audio[0].numpy()) and file["sound_field"] == "audio"
    with closing(imageio.get_reader(tmp_path / "out" / file["file"], format="FFMPEG")) as reader:
        assert reader.count_frames() == len(stock.frames[0]) and reader.get_meta_data()["fps"] == 25
    command = [get_ffmpeg_exe(), "-v", "error", "-i", str(tmp_path / "out" / file["file"]), "-vn", "-f", "f32le"]
    heard = np.frombuffer(run_ffmpeg([*command, "pipe:1"]), dtype="<f4").reshape(-1, 2).T
    assert heard.shape == stock.audio[0].shape and np.abs(heard - stock.audio[0].numpy()).max() <= 2**-23


def test_a_request_of_which_one_file_is_gone_or_altered_is_made_again(
    make: Make, clip_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (line,) = make(clip_model, CLIP, "job.format=npy")
    stock = whole_output(clip_model, CLIP, "np")
    names = [tmp_path / "out" / file["file"] for file in line["files"]]
    assert np.array_equal(np.load(names[0]), stock.frames[0])
    assert names[1].name.endswith(".audio.npy") and np.array_equal(np.load(names[1]), stock.audio[0].numpy())
    for damage in (Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-1])):
        damage(names[1])
        before = capfd.readouterr()
        (again,) = make(clip_model, CLIP, "job.format=npy")
        assert "missing or damaged; made again" in capfd.readouterr().err, before
        assert [file["sha256"] for file in again["files"]] == [file["sha256"] for file in line["files"]]
    assert make(clip_model, CLIP, "job.format=npy") == [again]


def test_latents_of_clip_and_sound_are_one_file(make: Make, clip_model: Path, tmp_path: Path) -> None:
    (line,) = make(clip_model, CLIP, "job.format=latent")
    stock, tensors = whole_output(clip_model, CLIP, "latent"), load_file(tmp_path / "out" / line["file"])
    assert set(tensors) == {"frames", "audio"}
    assert torch.equal(tensors["frames"], stock.frames) and torch.equal(tensors["audio"], stock.audio)


def test_sound_that_is_no_number_fails_the_request_and_names_the_field(
    make: Make, clip_model: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(clip_model, model)
    weights = model / "vocoder" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["conv_out.bias"].fill_(float("nan"))
    save_file(tensors, weights, metadata={"format": "pt"})
    assert make(model, CLIP, code=ExitCode.FAILED) == []
    (failure,) = map(json.loads, (tmp_path / "out" / "failures.jsonl").read_text().splitlines())
    assert failure["error"] == "NotFinite" and "NaN" in failure["message"]
    assert not list((tmp_path / "out" / "images").iterdir())
