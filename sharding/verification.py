"""The start-up check that this torch build and this mesh may mix inference and normal mode."""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from sharding.fsdp import shard
from sharding.priming import prime
from weights.agreement import gather
from weights.modes import refuse_inference_mode

_ORDERS = ("II", "IN", "NI", "INI")  # I: torch.inference_mode, N: torch.no_grad
_WIDTH = 24


class MixedModesUnsafe(RuntimeError):
    """On this torch build and mesh, sharded calls that mix inference and normal mode fail or change the output."""


def verify_mixed_modes(mesh: DeviceMesh) -> None:
    """Check that a primed module gives the unsharded bits in every order of inference and normal calls.

    Shards a toy of two blocks over `mesh`; takes milliseconds and leaves no state. A collective over all ranks. Raises
    MixedModesUnsafe with the order and the reason, on all ranks alike.
    """
    refuse_inference_mode("verify modes")
    problems = (_problem(mesh, order) for order in _ORDERS)
    for rank, problem in enumerate(gather(next(filter(None, problems), None), dist.group.WORLD)):
        if problem is not None:
            raise MixedModesUnsafe(f"torch {torch.__version__}, rank {rank} of {mesh}: {problem}")


def _problem(mesh: DeviceMesh, order: str) -> str | None:
    toy = _Toy().to(mesh.device_type)
    x = torch.linspace(-1, 1, _WIDTH, device=mesh.device_type)
    with torch.no_grad():
        expected = toy(x)
    prime(shard(toy, mesh))
    for calls, mode in enumerate(order, start=1):
        try:
            with torch.inference_mode() if mode == "I" else torch.no_grad():
                output = toy(x)
        except RuntimeError as error:  # how torch refuses to write to an inference tensor, on every rank alike
            return f"call {calls} in the order {order} (I: inference, N: normal) fails: {error}"
        if not torch.equal(output, expected):
            return f"call {calls} in the order {order} (I: inference, N: normal) changes the output"
    return None


class _Toy(nn.Module):
    """Two blocks and a root parameter, filled without touching the random generators."""

    def __init__(self) -> None:
        super().__init__()
        with torch.device("meta"):
            self.blocks = nn.ModuleList(nn.Linear(_WIDTH, _WIDTH) for _ in range(2))
            self.out = nn.Linear(_WIDTH, 1)
        self.to_empty(device="cpu")
        for parameter in self.parameters():
            parameter.data = torch.linspace(-1, 1, parameter.numel()).view_as(parameter)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (_WIDTH,) -> (1,)
        for block in self.blocks:
            x = torch.tanh(block(x))
        return self.out(x)
