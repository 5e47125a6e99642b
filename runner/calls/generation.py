"""A sharded encoder that generates token by token: its ranks go on until all of them have finished.

Each token is a forward, and each forward gathers weights, so that a rank whose text is complete has to make the
forwards that the others still need. transformers knows how (`synced_gpus`); it would ask the whole world whether all
have finished. The ranks of one shard group ask each other instead, and hear there too of one that has left.
"""

from torch import nn
from transformers import GenerationMixin

from runner.calls.lockstep import Lockstep
from weights.overrides import Overrides


def generate_in_step(module: nn.Module, lockstep: Lockstep, overrides: Overrides) -> None:
    """Have every `generate` in the sharded `module` keep the ranks of `lockstep` together."""
    if lockstep.size == 1:
        return

    def has_unfinished_sequences(this_peer_finished: bool, synced_gpus: bool, device: object) -> bool:
        return lockstep.any(not this_peer_finished, "generating")

    for inner in module.modules():
        if isinstance(inner, GenerationMixin):
            overrides.set(inner, "_is_fsdp_managed_module", True)  # which turns `synced_gpus` on
            overrides.set(inner, "_has_unfinished_sequences", has_unfinished_sequences)
