"""Pictures as PNG files that carry their recipe."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from runner.output.write import write_whole


def save_picture(path: Path, image: Image.Image, recipe: Mapping[str, Any]) -> None:
    """Write a PNG that carries its recipe (JSON) and its prompt as text chunks."""
    info = PngInfo()
    info.add_itxt("recipe", recipe_json(recipe))
    if recipe.get("prompt") is not None:
        info.add_itxt("prompt", str(recipe["prompt"]).encode("utf-8", "replace").decode("utf-8"))
    write_whole(path, lambda temp: image.save(temp, format="PNG", pnginfo=info))


def recipe_json(recipe: Mapping[str, Any]) -> str:
    """The recipe as ASCII JSON; values JSON does not know become objects, numbers or text."""
    return json.dumps(dict(recipe), default=_known)


def _known(value: Any) -> Any:
    """A value in JSON's terms."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, np.generic):
        return value.item()
    return str(value)
