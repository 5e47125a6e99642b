"""Weights in one .safetensors file (components.<name>.path=FILE), by the names of those who trained them: diffusers has
converters for some classes. What the component is says the model's own folder for it; nothing is guessed or fetched.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_model import FromOriginalModelMixin, _get_single_file_loadable_mapping_class
from torch import nn

from runner.components.reading import reading
from runner.components.skeleton import dtype_plan
from runner.components.source import Source
from runner.errors import UserError
from weights.checkpoint import few
from weights.header import stored_tensors

# How quantised weights are told: a scale beside each, which the converters drop.
_SCALES = ("scaled_fp8", ".scale_weight", ".weight_scale", ".scale_input", ".input_scale")


def single_source(name: str, file: Path, listed: Source | None) -> Source:
    """The component that the model lists, with its weights from the file. Raises UserError, FileError."""
    where = f"components.{name}.path"
    if listed is None:
        raise UserError(f"{where}: {file} has weights alone, and the model has no {name} whose configuration they fit")
    cls = listed.cls
    if not issubclass(cls, FromOriginalModelMixin) or _get_single_file_loadable_mapping_class(cls) is None:
        raise UserError(
            f"{where}: diffusers reads no {cls.__name__} from a single file; give a folder with its config.json"
        )
    if scales := [tensor.key for tensor in stored_tensors(file) if tensor.key.endswith(_SCALES)]:
        raise UserError(f"{where}: {file} holds quantised weights with scales ({few(scales)}), which diffusers ignores")
    return Source(name, cls, listed.folder, file=file)


def from_single_file(source: Source, dtype: torch.dtype) -> nn.Module:
    """As the class's own `from_single_file` makes it of the file and the folder's configuration."""
    cls: Any = source.cls
    with reading(f"{source.file} cannot be loaded as a {cls.__name__}"):
        module = cls.from_single_file(
            str(source.file), config=str(source.folder), torch_dtype=dtype, local_files_only=True
        )
    if missing := [name for name, tensor in module.named_parameters() if tensor.is_meta]:
        raise UserError(f"{source.file}: missing keys in the weights of a {cls.__name__}: {few(missing)}")
    return module.eval()


def single_file_dtypes(module: nn.Module, dtype: torch.dtype) -> Callable[[str], torch.dtype]:
    """`from_single_file` keeps what a class keeps in fp32 only in fp16, and not in bf16 as `from_pretrained` does."""
    return dtype_plan(module, dtype) if dtype is torch.float16 else lambda name: dtype
