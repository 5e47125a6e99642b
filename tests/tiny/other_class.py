"""A tiny pipeline's directory for another class over the same components."""

import json
import os
import shutil
from pathlib import Path


def for_class(model: Path, name: str, root: Path) -> Path:
    """A directory under `root`: the components of `model`, linked, under the pipeline class of this name."""
    made = root / name
    shutil.copytree(model, made, copy_function=os.link)
    index = json.loads((model / "model_index.json").read_text())
    (made / "model_index.json").unlink()
    (made / "model_index.json").write_text(json.dumps({**index, "_class_name": name}))
    return made
