"""All cases, by the name of their class: those of every tests/census/cases_*.py; and the classes that have none."""

import inspect
from importlib import import_module
from pathlib import Path

import diffusers
from diffusers import DiffusionPipeline

from tests.census.case import Case

_GROUPS = [import_module(f"tests.census.{path.stem}") for path in sorted(Path(__file__).parent.glob("cases_*.py"))]

CASES: dict[str, Case] = {case.pipeline: case for group in _GROUPS for case in group.CASES}

# Classes with a transformer that have no case, and why.
MISSING: dict[str, str] = {
    "VQDiffusionPipeline": "stock cannot load what it saves: the class of its learned embeddings is in no library "
    "that a model_index.json can name",
    "RFD4ProteinaPipeline": "it designs molecules: prepared tensors in, structures out, and no medium",
    "EasyAnimateControlPipeline": "stock raises TypeError at its first line of work: an argument that its own "
    "encode_prompt does not take",
} | dict.fromkeys(
    (
        "CosmosTextToWorldPipeline",
        "CosmosVideoToWorldPipeline",
        "Cosmos2TextToImagePipeline",
        "Cosmos2VideoToWorldPipeline",
        "Cosmos2_5_PredictBasePipeline",
        "Cosmos2_5_TransferPipeline",
    ),
    "stock makes its safety checker itself, of cosmos_guardrail and weights that it fetches, and refuses to go without",
)

# What stands in for all in `make test`.
SAMPLE = (
    "FluxPipeline",
    "QwenImageInpaintPipeline",  # pictures in
    "WanVideoToVideoPipeline",  # a clip in
    "Ideogram4Pipeline",  # parts of a component called one by one
    "StableDiffusion3ControlNetPipeline",  # nine parts
)


def transformer_pipelines() -> list[str]:
    """The pipeline classes of the installed diffusers whose constructor takes a transformer."""
    classes = {name: getattr(diffusers, name) for name in dir(diffusers) if "Pipeline" in name}
    return [
        name
        for name, cls in classes.items()
        if inspect.isclass(cls)
        and issubclass(cls, DiffusionPipeline)
        and "transformer" in inspect.signature(cls.__init__).parameters
    ]
