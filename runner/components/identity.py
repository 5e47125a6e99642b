"""What decides the pixels of all requests of a model: told in a few words, part of each request's id and of the recipe.

[Note: what counts]
Of the directory: the pipeline's class and settings, and of each component its class, what its library reads to build
it (files.py) and to fill it (weight_files), through links. A README beside, another variant, or a file of another name
does not count. Of the code: the releases of torch, diffusers and transformers, the type of the device, on an
accelerator its flags of precision (numerics.py), and which of the packages are there that the pipeline's code takes
another path without (needs.py).

Not the local tag of a release (2.13.0+cpu, +cu130), as little as the model of the GPU: torch promises the same bits
across neither, and a job may go on on another machine. Where weights rest and how many ranks there are changes no bit,
unless they share out the tokens of calls, which sums them in another order.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import ConfigMixin
from torch import nn
from transformers import PreTrainedTokenizerBase

from runner.components.context_fit import check_context
from runner.components.directory import Directory
from runner.components.files import files_of
from runner.components.needs import deciding
from runner.components.reading import file_errors
from runner.components.source import Source
from runner.config import RunConfig
from runner.errors import UserError
from runner.numerics import flags_that_decide
from runner.output.recipe import key_of
from runner.world import World
from weights.files import FileError, read_bytes, why_unreadable
from weights.header import read_header

_LIBRARIES = (torch, diffusers, transformers)


def agreed_identity(directory: Directory, config: RunConfig, world: World) -> dict[str, Any]:
    """`identity`, the dtype, and how many ranks share out tokens, the same on every rank. Collective; raises UserError
    that names what differs."""
    mine = world.agreed(lambda: identity(directory, world.device.type, config.model.dtype.value))
    mine |= flags_that_decide(world.device)
    if config.execution.compile:
        mine["numerics.compile"] = str(config.execution.compile)
    if world.agreed(lambda: check_context(directory, world.team.context, compiled=bool(config.execution.compile))):
        mine["mesh.context"] = world.team.context
    first, *others = world.gather(mine)
    for rank, other in enumerate(others, start=1):
        for key in sorted(first.keys() | other.keys()):
            if first.get(key) != other.get(key):
                raise UserError(
                    f"{key_of(key)} is not the same on all ranks: {first.get(key)} on rank 0, {other.get(key)} on rank "
                    f"{rank}; give all nodes the same files and packages"
                )
    return mine


def identity(directory: Directory, device_type: str, dtype: str = "float32") -> dict[str, Any]:
    """Key -> value, a hash for each component. Raises UserError where a file cannot be read."""
    with file_errors():
        components = {name: _digest(source) for name, source in directory.sources.items()}
    packages = deciding(directory.pipeline)
    if any(_takes_pictures(cls) for cls in directory.classes.values()):
        packages["torchvision"] = transformers.utils.is_torchvision_available()
    return {
        "pipeline": directory.pipeline.__name__,
        "settings": hashlib.sha256(json.dumps(directory.settings, sort_keys=True).encode()).hexdigest(),
        **components,
        **_changes(directory, dtype),
        "device": device_type,
        **{f"library.{one.__name__}": str(one.__version__).partition("+")[0] for one in _LIBRARIES},
        **{f"library.{name}": "installed" if there else "absent" for name, there in sorted(packages.items())},
    }


def _changes(directory: Directory, dtype: str) -> dict[str, Any]:
    """What is changed of components, by the keys that say so: what they are anyhow, spelled out, does not count."""
    told = {
        f"components.{name}.{key}": value
        for name, source in directory.sources.items()
        for key, value in source.told().items()
        if not (key == "dtype" and value == dtype)
    }
    return {"dtype": dtype, **told}


def _takes_pictures(cls: type) -> bool:
    """An image processor, or a processor with one inside: torchvision or PIL resizes for it, whichever is there."""
    return not issubclass(cls, nn.Module | ConfigMixin | PreTrainedTokenizerBase)


def _digest(source: Source) -> str:
    """A hash of a component: its class, the files it is built from, and a sample of each weight file.

    Hashing 60 GB would take minutes at each start. A file's header, size and 64 chunks spread through it tell one
    checkpoint from another; a change of single values between the chunks goes unseen.
    """
    digest = hashlib.sha256((source.changes.exchanged or source.cls).__name__.encode())
    for file in files_of(source.cls, source.folder):
        content = read_bytes(file)
        digest.update(f"\0{file.relative_to(source.folder)}\0{len(content)}\0".encode() + content)
    for file in source.weight_files() if source.is_module else ():
        name = "" if source.file is not None else file.name  # which nobody reads
        digest.update(f"\0{name}\0".encode())
        for sample in _sample(file):
            digest.update(sample)
    return digest.hexdigest()


def _sample(file: Path, chunks: int = 64, size: int = 16384) -> Iterator[bytes]:
    header = read_header(file)
    try:
        with file.open("rb") as stream:
            total = stream.seek(0, 2)
            yield total.to_bytes(8, "little") + header
            for i in range(chunks):
                stream.seek(max(len(header), (total - size) * i // (chunks - 1)))
                yield stream.read(size)
    except OSError as error:
        raise FileError(why_unreadable(file, error)) from error
