"""Fills a component that stays on its device: weight by weight, from the files to where each one stays."""

import torch
from torch import nn

import offload
from offload.stores.packing import views
from weights.checkpoint import Checkpoint
from weights.memory import hold
from weights.modes import refuse_inference_mode
from weights.tied import find_weights


def fill(module: nn.Module, checkpoint: Checkpoint, device: torch.device, *, keep_pages: bool = False) -> None:
    """Give a module with meta parameters its weights, each in memory of its own on `device`, as the allocator aligns
    it. In place. `keep_pages`: other ranks of the node read the same files, so what was read stays in the page cache.

    Beside the weights this takes the host memory that a copy engine stages in. What is wrong with the files is raised
    before a weight is read: KeysDiffer, CheckpointError; StoreError for what is found while reading.
    """
    refuse_inference_mode("load weights")
    weights = find_weights(module)
    units = {weight.names[0]: {weight.names[0]: weight.tensor} for weight in weights}
    store = offload.DiskStore(checkpoint, units, aliases=offload.find_aliases(module), keep_pages=keep_pages)
    engine = offload.engine_for(device)
    filled: list[torch.Tensor] = []
    try:
        for weight in weights:
            name, tensor = weight.names[0], weight.tensor
            packing = store.packings[name]
            buffer = engine.empty(packing.num_bytes)
            engine.wait(engine.copy(store, name, buffer, after=(engine.mark(),)))
            data = views(packing, buffer)[name]
            parameter = isinstance(tensor, nn.Parameter)
            filled.append(nn.Parameter(data, requires_grad=tensor.requires_grad) if parameter else data)
            weight.replace(filled[-1])
    finally:
        engine.close()
        store.close()
    known = {id(tensor) for tensor in filled}
    for buffer in module.buffers():
        if id(buffer) not in known:  # a constructor computed it, in memory that may be numpy's
            hold(buffer, buffer.to(device, copy=True))
