"""The components of a pipeline in the order in which it works, and which stage each works in.

A diffusers pipeline declares its order (`model_cpu_offload_seq`), but not always all of it: most leave out their
ControlNets, HunyuanVideo 1.5 its second text encoder, Stable Diffusion its safety checker. Those are known by what they
are.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from runner.components.component import Component

_GIVEN = ("input_ids", "pixel_values")  # main inputs, as transformers calls them, of models for prompts and pictures
_OF_WHAT_WAS_MADE = ("SafetyChecker", "Watermark")  # in the class's name


def components_of(pipeline: Any) -> list[Component]:
    """A pipeline's modules in the order in which it works, each with its stage."""
    modules = {name: module for name, module in pipeline.components.items() if isinstance(module, nn.Module)}
    return in_order(modules, pipeline.model_cpu_offload_seq)


def in_order(modules: Mapping[str, nn.Module], sequence: str | None) -> list[Component]:
    """`components_of` a pipeline that has these modules, and declares this order.

    What can decode, and all that is declared after it, is the decode stage; before it, models of the transformers
    library encode the prompt, and the rest (a DiT, a UNet) denoise. What is not declared stands before the declared
    ones of its stage if it encodes or denoises (a ControlNet is called before the model that takes what it gives).
    """
    declared = [name for name in (sequence or "").split("->") if name in modules]
    components, decoding = [], False
    for name in declared:
        decoding = decoding or _can_decode(modules[name])
        stage = "decode" if decoding else "encode" if isinstance(modules[name], PreTrainedModel) else "denoise"
        components.append(Component(name, modules[name], stage))
    others = [Component(name, module, _stage(module)) for name, module in modules.items() if name not in declared]
    for stage, later in (("encode", ("denoise", "decode")), ("denoise", ("denoise", "decode")), ("decode", ())):
        place = next((place for place, one in enumerate(components) if one.stage in later), len(components))
        components[place:place] = [one for one in others if one.stage == stage]
    return components


def _stage(module: nn.Module) -> str:
    """Of a module that the pipeline's order leaves out."""
    if _can_decode(module) or any(part in type(module).__name__ for part in _OF_WHAT_WAS_MADE):
        return "decode"
    if isinstance(module, PreTrainedModel):
        return "encode" if module.main_input_name in _GIVEN else "decode"  # a vocoder is given a spectrogram
    return "denoise"


def _can_decode(module: nn.Module) -> bool:
    return callable(getattr(module, "decode", None))
