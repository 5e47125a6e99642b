"""The weights' `requires_grad`, which a sharded module has to give up for a while.

[Note: requires_grad] It decides more than gradients: `torch.matmul` folds its input into one matrix for a weight that
requires grad, and may take a batched product for one that does not, with other last bits on some CPUs. So a weight
keeps the flag that its library gave it, also where no gradient is ever wanted. But FSDP insists, when it first gathers,
that all weights of a unit that require grad have one dtype, and models keep some in fp32. So the flags are off until
then.
"""

from torch import nn

_NAMES = "_require_grad_when_primed"


def suspend(module: nn.Module) -> None:
    """Turn the flags off, and note which were on."""
    vars(module)[_NAMES] = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    module.requires_grad_(False)


def resume(module: nn.Module) -> None:
    """Turn those on again that `suspend` turned off here or below, on the slices that are registered now."""
    for inner in module.modules():
        for name in vars(inner).pop(_NAMES, ()):
            inner.get_parameter(name).requires_grad_(True)
