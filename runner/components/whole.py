"""A component as its own library loads it: whole, in host memory."""

from typing import Any

import torch
from diffusers import ConfigMixin
from torch import nn

from runner.components.changing import scheduler_of
from runner.components.compiled import compile_blocks
from runner.components.reading import reading
from runner.components.single_file import from_single_file
from runner.components.source import Source
from runner.errors import UserError
from weights.checkpoint import few


def load_whole(source: Source, dtype: torch.dtype) -> nn.Module:
    """The component in allocator-aligned host memory, with every weight from its files.

    Loaded weights are views of the mapped file at odd offsets, and CPU kernels pick their instructions by alignment,
    which moves the last bit. A copy per tensor gives the same bits in every placement.
    """
    return load_noted(source, dtype)[0]


def load_noted(source: Source, dtype: torch.dtype) -> tuple[nn.Module, list[str]]:
    """`load_whole`, and the stored keys that its library warns of because it has no use for them."""
    if source.file is not None:
        module = from_single_file(source, dtype)
        _align(module)
        return compile_blocks(module, source.changes.compile), []
    module, info = from_pretrained(source, dtype=dtype, use_safetensors=True, output_loading_info=True)
    for problem in ("missing_keys", "mismatched_keys"):
        if keys := sorted(map(str, info.get(problem, ()))):
            raise UserError(f"{source.folder}: {problem.replace('_', ' ')} in the weights: {few(keys)}")
    if getattr(module, "hf_quantizer", None) is None:  # what a quantised weight holds is its library's to move
        _align(module)
    unused = sorted(map(str, info.get("unexpected_keys", ())))
    return compile_blocks(module.eval(), source.changes.compile), unused


def move_whole(module: nn.Module, device: torch.device) -> None:
    """A module that something else made: on the device, in aligned memory."""
    module.to(device)
    _align(module)


def _align(module: nn.Module) -> None:
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data = tensor.data.clone()


def from_pretrained(source: Source, **kwargs: Any) -> Any:
    """Raises UserError where the library cannot.

    Code of the directory is never run: transformers, which takes the argument in all its classes, would otherwise ask
    on standard input (and a batch job may have a `yes |` there). diffusers runs none in its models and schedulers.
    """
    if not issubclass(source.cls, ConfigMixin):
        kwargs["trust_remote_code"] = False
    if source.variant is not None:
        kwargs["variant"] = source.variant
    cls, changes = source.changes.exchanged or source.cls, source.changes
    with reading(f"{source.folder} cannot be loaded as a {cls.__name__}"):
        found = cls.from_pretrained(source.folder, local_files_only=True, **kwargs)
        has_changed = changes.settings or changes.exchanged
        return scheduler_of(found, source.cls, changes.settings) if has_changed else found
