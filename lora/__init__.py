"""LoRA adapters under any placement: read and checked whole, then merged where weights rest, or applied beside them."""

from lora.adapter import Adapter, AdapterError, LowRank
from lora.arithmetic import on_device, write_merged
from lora.dynamic import BesideLayers, forget_scales
from lora.edits import Edits, Terms, edits_of
from lora.merged import MergedWeights, ReadBase
from lora.reading import adapter_identity, read_adapter

__all__ = [
    "Adapter",
    "AdapterError",
    "BesideLayers",
    "Edits",
    "LowRank",
    "MergedWeights",
    "ReadBase",
    "Terms",
    "adapter_identity",
    "edits_of",
    "forget_scales",
    "on_device",
    "read_adapter",
    "write_merged",
]
