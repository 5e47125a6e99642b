"""What a test needs to know about a tiny pipeline."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TEXT_PROMPTS = ("a red fox in the deep snow", "blue whale under a bright moon", "an old clock on the wall")
NEGATIVE_PROMPT = "blurry, low quality"
NUM_STEPS = 3


@dataclass(frozen=True)
class TinyPipeline:
    """One family: how to write its directory, and the arguments of a small, fast call.

    `unread` names the blocks (dotted, from the pipeline) whose result the stock pipeline throws away or never asks for:
    no picture can depend on them, and a test that perturbs blocks has to leave them out.
    """

    name: str
    build: Callable[[Path], None]
    call: Mapping[str, Any]
    prompt_argument: str = "prompt"
    prompts: tuple[Any, ...] = TEXT_PROMPTS
    denoisers: tuple[str, ...] = ("transformer",)
    text_encoders: tuple[str, ...] = ("text_encoder",)
    output: str = "images"
    unread: tuple[str, ...] = ()
