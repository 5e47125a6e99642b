"""What the documents name and a test cannot have: a large model, eight GPUs, and the time that many steps take."""

from pathlib import Path

from tests import tiny

# A model's path in the documents -> the tiny pipeline in its place.
MODELS = {"/models/my-model": "qwenimage", "/models/FLUX.1-dev": "flux"}

# By the model's path as the documents have it: words that make a job small. They come last, and so go before others.
SMALL = {
    "models/emoji-dit": ("job.call.num_inference_steps=1",),
    "/models/FLUX.1-dev": (
        "job.call.num_inference_steps=1",
        "job.call.height=32",
        "job.call.width=32",
        "job.call.max_sequence_length=16",
        "placement.transformer.rest=host",
        "placement.transformer.resident_blocks=1",
    ),
    "/models/my-model": ("job.call.num_inference_steps=1", "job.call.height=32", "job.call.width=32"),
}

MOST_RANKS = 2


def replaced(text: str, tiny_root: Path) -> str:
    for path, family in MODELS.items():
        text = text.replace(path, str(tiny.build(family, tiny_root)))
    return text
