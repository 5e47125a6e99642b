"""The icons: installing the npm packages that ship them and rasterising them once into one array."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import torch

from .concepts import CONCEPTS, STYLES
from .files import write_atomically

RASTERISER = "@resvg/resvg-js"
RASTER_SIZE = 128  # twice the pictures' size, so that scaling and turning them loses nothing


def load_icons(cache: Path) -> torch.Tensor:
    """Returns the icons, rasterising them on the first call.

    Returns:
        Straight-alpha RGBA, uint8, of shape (styles, concepts, 128, 128, 4).
    """
    path = cache / "icons.npy"
    if not path.exists():
        _install(cache)
        icons = _rasterise(cache)
        write_atomically(path, lambda temporary: np.save(temporary, icons))
    icons = np.load(path)
    if icons.shape[:2] != (len(STYLES), len(CONCEPTS)):
        raise ValueError(f"{path} was made for another list of concepts: delete {cache} and start again")
    return torch.from_numpy(icons)


def _install(cache: Path) -> None:
    packages = [style.package for style in STYLES] + [RASTERISER]
    cache.mkdir(parents=True, exist_ok=True)
    if all((cache / "node_modules" / package).exists() for package in packages):
        return
    subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--prefix", str(cache), *packages], check=True)


def _rasterise(cache: Path) -> np.ndarray:
    """Renders every icon in a node process, style by style."""
    wanted = [{"package": style.package, "icon": concept.icon} for style in STYLES for concept in CONCEPTS]
    raw = cache / "icons.rgba"
    script = Path(__file__).with_name("rasterise.mjs")
    command = ["node", str(script), str(cache), str(raw), str(RASTER_SIZE)]
    subprocess.run(command, input=json.dumps(wanted), text=True, check=True)
    pixels = np.fromfile(raw, dtype=np.uint8)
    raw.unlink()
    return pixels.reshape(len(STYLES), len(CONCEPTS), RASTER_SIZE, RASTER_SIZE, 4)
