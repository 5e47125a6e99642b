"""What an offloaded component takes on the device, measured from outside: here the device's memory is the process's."""

from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from offload import DiskStore, HostStore, Store, offload, plan_units
from tests.memory import peak_anonymous_memory
from weights.checkpoint import Checkpoint

MIB = 2**20
NUM_BLOCKS = 6
CPU = torch.device("cpu")


class Wide(nn.Module):
    """Weights of 64 MiB: above 32 MiB glibc maps each one by itself, so that freeing it gives its pages back."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4096, 4096, bias=False) for _ in range(NUM_BLOCKS))
        self.out = nn.Linear(4096, 4096, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.out(x)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wide")
    weights = {f"blocks.{i}.weight": torch.full((4096, 4096), 1e-4 * (i + 1)) for i in range(NUM_BLOCKS)}
    save_file(weights | {"out.weight": torch.ones(4096, 4096)}, folder / "diffusion_pytorch_model.safetensors")
    return folder


@pytest.mark.parametrize("rest", ["disk", "host"])
@pytest.mark.parametrize(("window", "resident_blocks"), [(1, 0), (2, 0), (2, 1), ("all", 0)])
def test_a_call_takes_the_memory_that_is_stated(
    folder: Path, rest: str, window: int | Literal["all"], resident_blocks: int
) -> None:
    with torch.device("meta"):
        module = Wide()
    units = plan_units(module)

    def open_files() -> DiskStore:
        return DiskStore(Checkpoint(folder), units)

    # Shared memory is not anonymous, so the host's copy is not counted.
    store: Store = open_files() if rest == "disk" else HostStore.from_files(open_files)
    x = torch.ones(1, 4096)
    nn.functional.linear(x, torch.ones(4096, 4096))  # what the first product in a process sets up is not counted
    with peak_anonymous_memory() as peak:
        offloaded = offload(module, store, device=CPU, window=window, resident_blocks=resident_blocks)
        for _ in range(2):
            with torch.inference_mode():
                module(x)
            offloaded.end()
    num_slots = NUM_BLOCKS if window == "all" else window
    assert offloaded.bytes_bound == (num_slots + resident_blocks + 1) * 64 * MIB
    assert peak() <= offloaded.bytes_bound + 8 * MIB
    assert offloaded.bytes_on_device == resident_blocks * 64 * MIB
    store.close()
