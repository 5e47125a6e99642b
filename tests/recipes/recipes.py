"""The recipes in configs/models: a base for each model, and what is laid over it for other machines."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from runner.config import RunConfig, load_config
from tests.recipes.fit import Fit, fit

FOLDER = Path(__file__).parents[2] / "configs" / "models"

# The class that each model's directory names.
PIPELINES = {
    "flux1-dev": "FluxPipeline",
    "flux1-schnell": "FluxPipeline",
    "flux2-dev": "Flux2Pipeline",
    "qwen-image": "QwenImagePipeline",
    "qwen-image-edit": "QwenImageEditPlusPipeline",
    "z-image-turbo": "ZImagePipeline",
    "sd3.5-large": "StableDiffusion3Pipeline",
    "wan2.1-t2v-14b": "WanPipeline",
    "wan2.1-i2v-14b": "WanImageToVideoPipeline",
    "wan2.2-t2v-a14b": "WanPipeline",
    "wan2.2-i2v-a14b": "WanImageToVideoPipeline",
    "wan2.2-ti2v-5b": "WanPipeline",
    "hunyuanvideo1.5-t2v": "HunyuanVideo15Pipeline",
    "hunyuanvideo1.5-i2v": "HunyuanVideo15ImageToVideoPipeline",
    "ltx-2": "LTX2Pipeline",
    "sana-1.6b": "SanaPipeline",
}
# GB of memory of a GPU, and how many GPUs, by the ending of a recipe's name. A base is for one of 80 GB.
MACHINES = {"": (80, 1), "24gb": (24, 1), "8x80gb": (80, 8)}
# GB that stay free for activations: pictures of a megapixel or clips of 480p on 24 GB, clips of 720p on 80 GB.
ROOM = {24: 8, 80: 10}


@dataclass(frozen=True)
class Arrangement:
    """A base recipe, and what is laid over it for a machine."""

    base: str
    machine: str = ""
    over: Path | None = None

    def __str__(self) -> str:
        return f"{self.base}.{self.machine}" if self.machine else self.base

    @property
    def files(self) -> list[Path]:
        return [FOLDER / f"{self.base}.yaml", *([self.over] if self.over else [])]

    def load(self, words: Sequence[str] = ("model.path=m",)) -> RunConfig:
        return load_config(self.files[0], words, self.files[1:])

    def fit(self) -> Fit:
        return _fit(self)


@cache
def _fit(arrangement: Arrangement) -> Fit:
    return fit(arrangement.base, arrangement.load(), ranks=MACHINES[arrangement.machine][1])


def comment(file: Path) -> str:
    """What stands above a recipe's settings, in one line."""
    lines = [line.removeprefix("#").strip() for line in file.read_text().splitlines() if line.startswith("#")]
    return " ".join(lines)


def bases() -> list[str]:
    return sorted(file.stem for file in FOLDER.glob("*.yaml") if not comment(file).startswith("Over "))


def arrangements() -> list[Arrangement]:
    """All that the files' own first words say: "Over a.yaml or b.yaml, for ..."."""
    found = [Arrangement(base) for base in bases()]
    for file in sorted(FOLDER.glob("*.yaml")):
        if match := re.match(r"Over (.*?), for ", comment(file)):
            machine = file.stem.rpartition(".")[2]
            found += [Arrangement(base.removesuffix(".yaml"), machine, file) for base in match[1].split(" or ")]
    return found
