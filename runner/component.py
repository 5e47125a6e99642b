"""A component of a pipeline: what it is called, the live module, and the stage it works in."""

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Component:
    name: str
    module: nn.Module
    stage: str

    @property
    def placement(self) -> dict[str, str]:
        """Observed on the live module: a whole copy on the device. Nothing else is built yet."""
        devices = {str(p.device) for p in self.module.parameters()} or {"none"}
        return {"share": "replicate", "rest": "device", "device": ",".join(sorted(devices))}

    @property
    def num_bytes(self) -> int:
        return sum(t.nbytes for t in (*self.module.parameters(), *self.module.buffers()))


def components_of(pipeline: Any) -> list[Component]:
    """A diffusers pipeline's modules in the order it declares (`model_cpu_offload_seq`), each with its stage.

    What can decode, and all that is declared after it, is the decode stage; before it, models of the transformers
    library encode the prompt, and the rest (a DiT, a UNet, a ControlNet) denoise.
    """
    modules = {name: module for name, module in pipeline.components.items() if isinstance(module, nn.Module)}
    declared = [name for name in (pipeline.model_cpu_offload_seq or "").split("->") if name in modules]
    ordered = declared + [name for name in modules if name not in declared]
    components, decoding = [], False
    for name in ordered:
        decoding = decoding or callable(getattr(modules[name], "decode", None))
        stage = "decode" if decoding else "encode" if isinstance(modules[name], PreTrainedModel) else "denoise"
        components.append(Component(name, modules[name], stage))
    return components
