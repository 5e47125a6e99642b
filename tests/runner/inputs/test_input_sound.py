"""Sound as an input: what stock makes of soundfile's samples, and never at another speed."""

from pathlib import Path

import pytest
import soundfile
import torch

from runner.config import load_config
from runner.errors import UserError
from runner.job.requests import read_job, requests_of, with_inputs
from runner.pipeline.open import open_pipeline
from runner.pipeline.pipeline import Pipeline
from runner.request import Request
from runner.world import World
from tests import tiny
from tests.runner.inputs.input_files import noise
from tests.tiny.sound import SAMPLING_RATE, SECONDS, build

CALL = {
    "num_inference_steps": 2,
    "guidance_scale": 3.0,
    "initial_audio_sampling_rate": SAMPLING_RATE,
    "audio_end_in_s": SECONDS,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "model"
    build(path)
    return path


@pytest.fixture(scope="module")
def pipeline(model: Path) -> Pipeline:
    return open_pipeline(load_config(None, [f"model.path={model}"]), World(0, 1, torch.device("cpu")))


def sing(path: Path, rate: int) -> Path:
    soundfile.write(path, noise(0, 400, 2) / 255.0 - 0.5, rate)
    return path


def planned(pipeline: Pipeline, path: Path) -> list[Request]:
    call = [f"job.call.{name}={value}" for name, value in CALL.items()]
    job = load_config(None, [*call, f"job.call.initial_audio_waveforms={path}", "job.prompt=rain"]).job
    prompts, _ = with_inputs(read_job(job), job, pipeline.arguments, None)
    return requests_of(prompts, job, pipeline, {})


def test_sound_made_anew_has_the_bits_of_stock(pipeline: Pipeline, model: Path, tmp_path: Path) -> None:
    file = sing(tmp_path / "a.wav", SAMPLING_RATE)
    (request,) = planned(pipeline, file)
    made = pipeline(Request(request.prompt, 3, request.call, output_type="latent"))[0][0]
    samples, _ = soundfile.read(file, dtype="float32")
    with torch.inference_mode():
        generator = torch.Generator("cpu").manual_seed(3)
        waveforms = torch.from_numpy(samples.T)[None]
        stock = tiny.load_stock(model)
        wanted = stock("rain", initial_audio_waveforms=waveforms, generator=generator, output_type="latent", **CALL)
        silent = stock("rain", generator=generator.manual_seed(3), output_type="latent", **CALL)
    assert torch.equal(torch.as_tensor(made), wanted.audios[0])
    assert not torch.equal(wanted.audios[0], silent.audios[0]), "the sound takes part"


def test_sound_of_another_rate_is_refused(pipeline: Pipeline, tmp_path: Path) -> None:
    file = sing(tmp_path / "a.flac", 8_000)
    with pytest.raises(UserError, match=r"prompt 1: .*a\.flac has 8000 samples a second, .* works at 4000; resample"):
        planned(pipeline, file)
