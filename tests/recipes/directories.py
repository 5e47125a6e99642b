"""Directories of the models that recipes are for, as a login node may have them: configurations in the real sizes, and
no weights."""

import json
from pathlib import Path

import diffusers
from diffusers import ConfigMixin

from tests.census.cases import CASES
from tests.recipes.real_sizes import components
from tests.recipes.recipes import PIPELINES


def write(recipe: str, folder: Path) -> Path:
    """What has no weights (schedulers, tokenizers) is that of the tiny model of the same class."""
    case = CASES[PIPELINES[recipe]]
    getattr(diffusers, case.pipeline)(**case.parts()).save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    for file in folder.glob("*/*.safetensors*"):
        file.unlink()
        if file.parent.name not in components(recipe):  # of another model of the class, such as a second transformer
            index |= {file.parent.name: [None, None], "boundary_ratio": None}
    for name, module in components(recipe).items():
        own = folder / name
        own.mkdir(exist_ok=True)
        if isinstance(module, ConfigMixin):
            module.save_config(own)
        else:
            module.config.save_pretrained(own)
        library = index.get(name, [None])[0] or ("diffusers" if isinstance(module, ConfigMixin) else "transformers")
        index[name] = [library, type(module).__name__]
    index = {name: value for name, value in index.items() if name != "boundary_ratio" or "transformer_2" in index}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    return folder
