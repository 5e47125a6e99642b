"""A component without weights: its modules and buffers as its library builds them, its parameters on meta."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from runner.components.reading import reading
from runner.components.source import Source
from weights.checkpoint import Checkpoint
from weights.header import StoredTensor, stored_alike
from weights.on_meta import parameters_on_meta


def skeleton(source: Source, dtype: torch.dtype) -> nn.Module:
    """The component that `from_pretrained` of its class would give, with meta parameters of its dtypes.

    Buffers are real: a constructor computes them (rotary tables, position embeddings), and on meta they would be lost.
    Names are tied where the files say so. Raises UserError for a configuration that the class does not take,
    CheckpointError for weight files that are bad.
    """
    default = torch.get_default_dtype()
    cls, folder = source.cls, source.folder
    try:
        with (
            reading(f"{folder / 'config.json'} does not make a {cls.__name__}"),
            parameters_on_meta(),
        ):
            if issubclass(cls, PreTrainedModel):
                config = cls.config_class.from_pretrained(folder, local_files_only=True)
                module = cls._from_config(config, dtype=dtype)
            else:
                torch.set_default_dtype(dtype)  # as diffusers does: constructors compute buffers in it
                module = cls.from_config(cls.load_config(folder, local_files_only=True))
    finally:
        torch.set_default_dtype(default)
    if isinstance(module, PreTrainedModel):
        if source.absent is None:
            _tie_as_stored(module, checkpoint_of(module, source).stored())
        else:
            module.tie_weights()  # as the class has it: files seldom say otherwise
        _set_generation_config(module, folder)
    return module.eval()


def _set_generation_config(module: PreTrainedModel, folder: Path) -> None:
    """What a prompt enhancer generates with, as `from_pretrained` reads it: from a file of its own, or the config's."""
    if module.can_generate():
        own = os.path.isfile(folder / "generation_config.json")
        file = "generation_config.json" if own else "config.json"
        options: dict[str, Any] = {} if own else {"_from_model_config": True}
        with reading(f"{folder / file} is no generation config"):
            module.generation_config = GenerationConfig.from_pretrained(
                folder, config_file_name=file, local_files_only=True, **options
            )


def _tie_as_stored(module: PreTrainedModel, stored: Mapping[str, StoredTensor]) -> None:
    """Tie names as `from_pretrained` does: not two that are both stored, with different values.

    So far each name has a meta parameter of its own. `PreTrainedModel.tie_weights` leaves two names that are stored as
    they are while they are on meta, since it cannot compare them there; what the files say is compared here.
    """
    absent = set(module.state_dict()) - stored.keys()
    for target, source in list(module.all_tied_weights_keys.items()):
        if target in stored and source in stored:
            if stored_alike(stored[target], stored[source]):
                absent.add(target)  # either will do
            else:
                del module.all_tied_weights_keys[target]
    module.tie_weights(missing_keys=absent, recompute_mapping=False)


def dtype_plan(module: nn.Module, dtype: torch.dtype) -> Callable[[str], torch.dtype]:
    """The dtype of each weight by name: `dtype`, but for what the model's class keeps in fp32.

    diffusers keeps `_keep_in_fp32_modules` whatever the dtype; transformers keeps it in fp16 only, and
    `_keep_in_fp32_modules_strict` in bf16 too.
    """
    kept: set[str] = set()
    if isinstance(module, PreTrainedModel):
        kept = set(module._get_dtype_plan(dtype))
    elif names := getattr(module, "_keep_in_fp32_modules", None):
        kept = {names} if isinstance(names, str) else set(names)
    return lambda name: torch.float32 if kept.intersection(name.split(".")) else dtype


def checkpoint_of(module: nn.Module, source: Source) -> Checkpoint:
    """The component's files, as the library that built the module reads them."""
    with reading(f"{source.folder / 'config.json'}: the stored names of a {type(module).__name__} are not known"):
        return replace(source.checkpoint, rename=_stored_name(module))


def unused_keys(module: nn.Module, source: Source) -> list[str]:
    """Stored keys that the module has no place for, and that its library warns of: not those on its own list.

    In diffusers a list of the class, in transformers a rule (`_adjust_missing_and_unexpected_keys`) that looks at keys
    as they are renamed.
    """
    stored = checkpoint_of(module, source).stored()
    unused: Any = SimpleNamespace(missing_keys=set(), unexpected_keys=stored.keys() - module.state_dict().keys())
    if isinstance(module, PreTrainedModel):
        module._adjust_missing_and_unexpected_keys(unused)
    else:
        ignored = getattr(module, "_keys_to_ignore_on_load_unexpected", None) or ()
        unused.unexpected_keys = {k for k in unused.unexpected_keys if not any(re.search(i, k) for i in ignored)}
    return sorted(stored[name].key for name in unused.unexpected_keys)


def _stored_name(module: nn.Module) -> Callable[[str], str] | None:
    """The module's name for a key of its files; None where its library knows no other than the module's own.

    transformers renames the keys of some checkpoints. Where it also has to compute (split or merge tensors), the key
    is left as it is: it then matches nothing, and the component loads through the library.
    """
    if not isinstance(module, PreTrainedModel):
        return None
    transforms = get_model_conversion_mapping(module)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    names = module.state_dict()

    def rename(key: str) -> str:
        name, converted = rename_source_key(key, renamings, converters, module.base_model_prefix, names)
        if name not in names and key in names:  # it has its new name already
            name, converted = rename_source_key(key, [], [], module.base_model_prefix, names)
        return key if converted else name

    return rename
