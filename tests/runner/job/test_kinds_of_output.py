"""Jobs of sounds, latents and several files a request: the stock pipeline's numbers in the files, whole and once."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from runner.config import load_config
from runner.errors import ExitCode, UserError
from runner.run import run
from runner.world import World
from tests import tiny
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
        assert run(load_config(None, [*own, *words]), World(0, 1, torch.device("cpu"))) == code
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
