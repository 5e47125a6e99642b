"""Tiny random pipelines, built without a network: the oracle of the test suite.

Each family is an ordinary diffusers directory of a few megabytes at most, in which the picture depends on every block.
"""

import os
import shutil
import tempfile
from pathlib import Path

from .dit import DIT
from .family import TinyPipeline
from .flux import FLUX
from .hunyuanvideo import HUNYUANVIDEO
from .ltx import LTX
from .modular_anima import ANIMA
from .modular_directory import call_modular, load_modular
from .modular_of_classic import MODULAR_FLUX, MODULAR_QWENIMAGE, MODULAR_WAN22
from .modular_wan_animate2 import MODULAR_WAN_ANIMATE2
from .oracle import call_stock, load_stock, stock
from .pixart import PIXART
from .qwenimage import QWENIMAGE
from .sana import SANA
from .sd3 import SD3
from .wan import WAN, WAN22

__all__ = [
    "FAMILIES",
    "MODULAR",
    "TinyPipeline",
    "build",
    "call_modular",
    "call_stock",
    "load_modular",
    "load_stock",
    "stock",
]

FAMILIES: dict[str, TinyPipeline] = {
    family.name: family for family in (FLUX, SD3, QWENIMAGE, WAN, WAN22, PIXART, DIT, HUNYUANVIDEO, LTX, SANA)
}

# Pipelines that diffusers puts together from blocks: their directories hold a modular_model_index.json.
MODULAR: dict[str, TinyPipeline] = {
    family.name: family for family in (ANIMA, MODULAR_FLUX, MODULAR_QWENIMAGE, MODULAR_WAN22, MODULAR_WAN_ANIMATE2)
}


def build(name: str, root: Path) -> Path:
    """Write the family under `root`, unless it is there already, and return its directory.

    Processes may ask at the same time: each writes a directory of its own, and the first to rename it wins.
    """
    path = root / name
    if path.exists():
        return path
    root.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=root))
    try:
        {**FAMILIES, **MODULAR}[name].build(draft)
        os.rename(draft, path)
    except OSError:
        if not path.exists():
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return path
