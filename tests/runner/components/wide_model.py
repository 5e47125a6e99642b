"""A component of a library whose weights are large enough to be seen from outside."""

from pathlib import Path

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

WEIGHT_BYTES = 64 * 2**20  # above 32 MiB glibc maps each one by itself, so that freeing it gives its pages back


class Wide(ModelMixin, ConfigMixin):
    """`num_blocks` weights of 64 MiB in fp32, and one outside of them."""

    @register_to_config
    def __init__(self, num_blocks: int = 4) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4096, 4096, bias=False) for _ in range(num_blocks))
        self.out = nn.Linear(4096, 4096, bias=False)


def write(folder: Path, num_blocks: int = 4) -> Path:
    model = Wide(num_blocks)
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.fill_(i + 1)
    model.save_pretrained(folder)
    return folder
