"""Pipelines of the census whose denoisers have a plan of context parallelism, their tokens shared out by two ranks: the
picture within what the last bits of its calls add up to, and the calls themselves within theirs."""

import json

import numpy as np
import pytest
import torch.distributed as dist

from runner.config import load_config
from runner.run import run
from tests.census.arms import SEED, stock_outputs, write_case
from tests.census.cases import CASES
from tests.distributed.placed import joined
from tests.outcomes import why
from tests.ranks import World, on_ranks

PIPELINES = (
    "FluxPipeline",
    "FluxImg2ImgPipeline",
    "FluxInpaintPipeline",
    "FluxFillPipeline",
    "FluxKontextPipeline",
    "FluxKontextInpaintPipeline",
    "FluxControlPipeline",
    "FluxControlImg2ImgPipeline",
    "FluxControlInpaintPipeline",
    "FluxControlNetPipeline",
    "FluxControlNetImg2ImgPipeline",
    "FluxControlNetInpaintPipeline",
    "VisualClozePipeline",
    "Flux2Pipeline",
    "Flux2KleinPipeline",
    "Flux2KleinInpaintPipeline",
    "QwenImagePipeline",
    "QwenImageImg2ImgPipeline",
    "QwenImageInpaintPipeline",
    "QwenImageControlNetPipeline",
    "QwenImageControlNetInpaintPipeline",
    "QwenImageEditPipeline",
    "QwenImageEditPlusPipeline",
    "QwenImageEditInpaintPipeline",
    "QwenImageLayeredPipeline",
    "WanPipeline",
    "WanImageToVideoPipeline",
    "WanVideoToVideoPipeline",
    "LucyEditPipeline",
    "ChronoEditPipeline",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", PIPELINES)
@on_ranks(2)
def test_a_pipeline_whose_tokens_are_shared_out(world: World, name: str) -> None:
    case, folder = CASES[name], world.tmp_path
    if case.missing:
        return
    if world.rank == 0:
        write_case(case, folder)
    dist.barrier()
    output = folder / "out"
    config = load_config(folder / "job.yaml", [f"job.output={output}", "mesh.context=2", *case.settings])
    assert run(config, joined(world), verify=1) == 0, why(output)
    if world.rank == 0:
        report = json.loads((output / "run.json").read_text())
        assert report["parity"] and all(one["difference"] <= one["allowed"] for one in report["parity"])
        [line] = [json.loads(line) for line in (output / "manifest.jsonl").read_text().splitlines()]
        [wanted] = stock_outputs(case, folder, [SEED])
        for field, values in wanted.items():
            files = [np.load(output / file["file"]).ravel() for file in line["files"] if file["field"] == field]
            made = np.concatenate(files)
            assert np.linalg.norm(made - values) <= 1e-4 * np.linalg.norm(values), field
