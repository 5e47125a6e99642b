"""Reads an adapter from a safetensors file, in the formats of diffusers, peft, and what diffusers can convert."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE
from diffusers.utils.state_dict_utils import convert_state_dict_to_peft, convert_unet_state_dict_to_peft
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from torch import nn

from lora.adapter import Adapter, AdapterError, few
from lora.checking import check_component, layer_of, unsupported_parts

_Tensors = dict[str, torch.Tensor]

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_PEFT_PREFIX = "base_model.model."


def read_adapter(
    path: Path,
    modules: Mapping[str, nn.Module],
    *,
    components: Sequence[str] = (),
    pipeline_class: type | None = None,
) -> Adapter:
    """Read an adapter and check all of it against the modules it is for, which are not touched.

    Args:
        path: A `.safetensors` file, or a folder that holds one, with peft's `adapter_config.json` or without.
        modules: The pipeline's modules by component name, in any placement: only names, types and sizes are read.
        components: Which of them to adapt. By default those that the file's keys name, or the one that they fit.
            Where the file has factors for a single component, they go into each one named here; otherwise the others'
            factors are left out.
        pipeline_class: The pipeline's class, whose `lora_state_dict` converts formats of other trainers, if it has one.

    Raises AdapterError, naming keys: a pickle, an unreadable file, parts that are no LoRA factors (DoRA, biases), keys
    that match nothing, ranks or shapes that do not fit.
    """
    file = _weights_file(Path(path))
    with torch.inference_mode(False), torch.no_grad():
        tensors, config = _load(file)
        if problems := unsupported_parts(tensors, config):
            raise AdapterError(file, problems)
        parts = _by_component(file, tensors, modules, components, pipeline_class)
        changes, problems = {}, []
        for component, part in _chosen(file, parts, components, modules).items():
            part = _peft_names(part, modules[component])
            source = component if component in parts else next(iter(parts))
            found, wrong = check_component(part, modules[component], _config_of(config, source))
            changes[component] = found
            problems += [f"{component}: {problem}" for problem in wrong]
    if problems:
        raise AdapterError(file, problems)
    return Adapter(file, _identity(file, config), changes)


def adapter_identity(path: Path) -> str:
    """The identity that `read_adapter` would give the adapter, from its bytes alone."""
    file = _weights_file(Path(path))
    with torch.inference_mode(False), torch.no_grad():
        _, config = _load(file, names_only=True)
    return _identity(file, config)


def _weights_file(path: Path) -> Path:
    if path.is_dir():
        return _only_file(path)
    if path.suffix in _PICKLES:
        raise AdapterError(path, ["a pickle can run code when it is read; convert it to safetensors"])
    if not path.is_file():
        raise AdapterError(path, ["no such file or folder"])
    return path


def _only_file(folder: Path) -> Path:
    for name in (LORA_WEIGHT_NAME_SAFE, SAFETENSORS_WEIGHTS_NAME):
        if (folder / name).is_file():
            return folder / name
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return files[0]
    if files:
        raise AdapterError(folder, [f"holds several files, name one: {few([f.name for f in files])}"])
    if pickles := sorted(f.name for f in folder.iterdir() if f.suffix in _PICKLES):
        raise AdapterError(
            folder, [f"{few(pickles)}: a pickle can run code when it is read; convert it to safetensors"]
        )
    raise AdapterError(folder, ["holds no .safetensors file"])


def _load(file: Path, *, names_only: bool = False) -> tuple[_Tensors, dict[str, Any]]:
    """Every tensor in memory of its own, and the adapter's settings: peft's file beside it, or diffusers' metadata."""
    try:
        with safe_open(file, framework="pt") as handle:
            keys = [] if names_only else handle.keys()
            tensors = {key: handle.get_tensor(key).clone() for key in keys}
            metadata = handle.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise AdapterError(file, [f"not readable as safetensors ({error})"]) from error
    beside = file.with_name(CONFIG_NAME)
    text = metadata.get(LORA_ADAPTER_METADATA_KEY)
    if text is None and beside.is_file():
        text = beside.read_text()
    try:
        config = json.loads(text) if text else {}
    except ValueError as error:
        raise AdapterError(file, [f"its settings are not JSON ({error})"]) from error
    return tensors, config


def _by_component(
    file: Path,
    tensors: _Tensors,
    modules: Mapping[str, nn.Module],
    components: Sequence[str],
    pipeline_class: type | None,
) -> dict[str, _Tensors]:
    """The factors of each component, keys without its name: as stored, else as diffusers converts them."""
    parts, rest = _split(tensors, modules)
    if rest and not parts:
        bare = {key.removeprefix(_PEFT_PREFIX): tensor for key, tensor in rest.items()}
        if fitting := _fitting(bare, modules):
            chosen = [name for name in fitting if name in components] or fitting
            if len(chosen) > 1 and not components:
                raise AdapterError(file, [f"it fits {few(chosen)} alike; say which in components"])
            return {chosen[0]: bare}
    convert = getattr(pipeline_class, "lora_state_dict", None)
    if rest and convert is not None:
        try:
            converted = convert(dict(tensors), return_alphas=True)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RuntimeError) as error:
            raise AdapterError(file, [f"diffusers cannot convert it ({error!r}): {few(sorted(tensors))}"]) from error
        state, alphas = converted[:2] if isinstance(converted, tuple) else (converted, None)
        parts, rest = _split({**state, **(alphas or {})}, modules)
    if rest or not parts:
        raise AdapterError(file, [f"{len(rest)} keys match nothing in {', '.join(modules)}: {few(sorted(rest))}"])
    return parts


def _fitting(tensors: _Tensors, modules: Mapping[str, nn.Module]) -> list[str]:
    """The components in which most of the keys' layers are, if there are any."""
    hits = {name: sum(layer_of(module, key) is not None for key in tensors) for name, module in modules.items()}
    return [name for name, count in hits.items() if count and count == max(hits.values())]


def _split(tensors: _Tensors, modules: Mapping[str, nn.Module]) -> tuple[dict[str, _Tensors], _Tensors]:
    """Tensors by the component that their key begins with, and those that begin with none."""
    parts: dict[str, _Tensors] = {}
    rest: _Tensors = {}
    for key, tensor in tensors.items():
        component, _, inner = key.partition(".")
        if component in modules and layer_of(modules[component], key) is None:
            parts.setdefault(component, {})[inner] = tensor
        else:
            rest[key] = tensor
    return parts, rest


def _chosen(
    file: Path, parts: dict[str, _Tensors], components: Sequence[str], modules: Mapping[str, nn.Module]
) -> dict[str, _Tensors]:
    if not components:
        return parts
    if unknown := [name for name in components if name not in modules]:
        raise AdapterError(file, [f"the model has no {few(unknown)}; it has {', '.join(modules)}"])
    if len(parts) == 1:
        (part,) = parts.values()
        return dict.fromkeys(components, part)
    if absent := [name for name in components if name not in parts]:
        raise AdapterError(file, [f"it has nothing for {few(absent)}; it has {', '.join(parts)}"])
    return {name: parts[name] for name in components}


def _peft_names(part: _Tensors, module: nn.Module) -> _Tensors:
    """Old names (`to_q.lora.down.weight`, `q_proj.lora_linear_layer.up.weight`) as peft's."""
    if any("lora_linear_layer" in key for key in part):
        part = convert_state_dict_to_peft(part)
    elif any(re.search(r"lora\.(down|up)\.", key) for key in part):
        part = convert_unet_state_dict_to_peft(part)
    if not hasattr(module, "text_model"):  # which transformers 5 took out of CLIP's names
        part = {key.removeprefix("text_model."): tensor for key, tensor in part.items()}
    return part


def _config_of(config: Mapping[str, Any], component: str) -> dict[str, Any]:
    """peft's settings for one component: diffusers writes several into one file, each key under a component's name."""
    own = {key.removeprefix(f"{component}."): value for key, value in config.items() if key.startswith(f"{component}.")}
    return own or dict(config)


def _identity(file: Path, config: Mapping[str, Any]) -> str:
    """Hashes all bytes of the file, and the settings, which may lie in another file."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 24):
            digest.update(chunk)
    return digest.hexdigest()
