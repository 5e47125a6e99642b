"""Several calls of a sharded module at once, that take turns at its blocks: each block is gathered once for all.

[Note: several calls inside one root] FSDP takes a root's forward for the only one. It notes on the root, and on its
group of weights, that a forward runs; the first call to leave notes that none does, and then the next to leave would
free the root's weights under those that are still inside, and a block would take itself for the root. So a call that
comes back from a pause puts the note there again. FSDP has no public way to say so; what it keeps is set as its own
pre-forward sets it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard._fsdp_common import TrainingState


def moving_blocks(module: nn.Module) -> dict[str, FSDPModule]:
    """The blocks that are gathered anew at each call, by name, in the order of the module."""
    found: dict[str, FSDPModule] = {}
    for name, inner in module.named_modules():
        if inner is not module and isinstance(inner, FSDPModule) and _frees_itself(inner):
            found[name] = inner
    return found


def _frees_itself(block: FSDPModule) -> bool:
    return any(group._reshard_after_forward for group in block._get_fsdp_state()._fsdp_param_groups)


@contextmanager
def without_prefetch(module: nn.Module) -> Iterator[None]:
    """For calls that are measured: no block is gathered while another one runs."""
    states = [inner._get_fsdp_state() for inner in module.modules() if isinstance(inner, FSDPModule)]
    ahead = [state._states_to_forward_prefetch for state in states]
    for state in states:
        state._states_to_forward_prefetch = []
    try:
        yield
    finally:
        for state, others in zip(states, ahead, strict=True):
            state._states_to_forward_prefetch = others


def keep(block: FSDPModule) -> None:
    """From its next call on, `block` stays gathered until `let_go`. No communication."""
    block.set_reshard_after_forward(False, recurse=False)


def let_go(block: FSDPModule) -> None:
    """Free what is gathered of a block that was kept, and let it free itself again. No communication."""
    block.set_reshard_after_forward(True, recurse=False)
    block.reshard()


def resume_forward(root: nn.Module) -> None:
    """A call inside `root` goes on after others ran there. See [Note: several calls inside one root]."""
    assert isinstance(root, FSDPModule)
    state = root._get_fsdp_state()
    state._training_state = TrainingState.FORWARD
    state._state_ctx.iter_forward_root = state
    for group in state._fsdp_param_groups:
        group._training_state = TrainingState.FORWARD
