"""mesh.context in the main job: real processes, from the command to the files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from tests import tiny
from tests.distributed.test_context_forwards import difference
from tests.distributed.test_generate import device_of_jobs, generate, manifest

pytestmark = pytest.mark.slow


def test_a_job_whose_tokens_two_ranks_share_out(tiny_root: Path, tmp_path: Path) -> None:
    path, family = tiny.build("flux", tiny_root), tiny.FAMILIES["flux"]
    job, output = tmp_path / "job.yaml", tmp_path / "out"
    settings = {"prompt": list(family.prompts[:2]), "format": "npy", "output": str(output), "call": dict(family.call)}
    job.write_text(yaml.safe_dump({"model": {"path": str(path)}, "job": settings}))
    result = generate(2, str(job), "mesh.context=2", "placement.transformer.rest=disk", "--verify", "1")
    assert result.returncode == 0, result.stderr
    assert "transformer (FluxTransformer2DModel): a call whose tokens 2 ranks share out differs from a" in result.stderr

    stock = tiny.load_stock(path).to(device_of_jobs(2))
    made = manifest(output)
    assert len(made) == 2 and {line["rank"] for line in made} == {0}
    for line in made:
        wanted = tiny.call_stock(stock, family, line["prompt"], line["seed"])[0]
        assert difference(torch.as_tensor(wanted), torch.as_tensor(np.load(output / line["file"]))) <= 1e-5
    run = json.loads((output / "run.json").read_text())
    contexts = {name: component["context"] for name, component in run["components"].items()}
    assert contexts == {"text_encoder": 1, "text_encoder_2": 1, "transformer": 2, "vae": 1}
    assert "2 ranks share out its tokens" in run["components"]["transformer"]["reason"]
    assert [(one["component"], one["difference"] <= one["allowed"]) for one in run["parity"]] == [("transformer", True)]

    result = generate(1, str(job))
    assert result.returncode == 2 and "mesh.context: 2 -> unset" in result.stderr


def test_what_cannot_be_is_known_before_weights_are_loaded(tiny_root: Path, tmp_path: Path) -> None:
    path = tmp_path / "model"
    tiny.build("sana", tmp_path).rename(path)
    result = generate(2, f"model.path={path}", "job.prompt=a", f"job.output={tmp_path / 'out'}", "mesh.context=2")
    assert result.returncode != 0 and not (tmp_path / "out").exists()
    assert "error: mesh.context=2: diffusers has no plan to share out the tokens of any of " in result.stderr
