"""Our own pipelines through a job: named by model.pipeline, with pictures from files, in a placement."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import PixArtSigmaPipeline
from diffusers.utils import load_image

from pipelines import PixArtSigmaImg2ImgPipeline
from runner.config import load_config
from runner.run import run
from runner.world import World
from tests.outcomes import why

MODEL = Path(__file__).parents[2] / "models" / "emoji-dit"
FACE, MASK = MODEL / "face.png", MODEL / "mask.png"
CALL = {"num_inference_steps": 4, "guidance_scale": 3.0, "clean_caption": False, "strength": 0.7}


@pytest.mark.parametrize("rest", ["device", "disk"])
@pytest.mark.parametrize("files", [{"image": FACE}, {"image": FACE, "mask_image": MASK}], ids=["whole", "masked"])
def test_a_job_makes_the_pipelines_picture(files: dict[str, Path], rest: str, tmp_path: Path) -> None:
    job = {"prompt": "a lion", "format": "npy", "output": str(tmp_path / "out")}
    call = CALL | {name: str(path) for name, path in files.items()}
    (file := tmp_path / "job.yaml").write_text(
        json.dumps(
            {
                "model": {"path": str(MODEL), "pipeline": PixArtSigmaImg2ImgPipeline.__name__},
                "job": job | {"call": call},
            }
        )
    )
    config = load_config(file, [f"placement.default.rest={rest}"])
    assert run(config, World(0, 1, torch.device("cpu"))) == 0, why(tmp_path / "out")
    [line] = map(json.loads, (tmp_path / "out" / "manifest.jsonl").read_text().splitlines())
    got = np.load(tmp_path / "out" / line["file"])

    stock = PixArtSigmaPipeline.from_pretrained(MODEL, use_safetensors=True)
    for module in (stock.text_encoder, stock.transformer, stock.vae):
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data = tensor.data.clone()  # into aligned memory
    pipeline = PixArtSigmaImg2ImgPipeline(**stock.components)
    pictures = {name: load_image(str(path)) for name, path in files.items()}
    with torch.inference_mode():
        wanted = pipeline(
            "a lion", **CALL, **pictures, output_type="np", generator=torch.Generator().manual_seed(0)
        ).images[0]
    assert np.array_equal(got, wanted)
