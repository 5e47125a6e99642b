"""A component built without weights is the one its library loads, in every name, shape, dtype and buffer."""

from pathlib import Path

import pytest
import torch
from torch import nn

import sharding
from runner.components.directory import component_classes, read_index
from runner.components.load import load_whole
from runner.components.skeleton import dtype_plan, skeleton
from tests import tiny


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_skeleton_of_each_component_is_what_its_library_builds(
    family: str, dtype: torch.dtype, tiny_root: Path
) -> None:
    path = tiny.build(family, tiny_root)
    default = torch.get_default_dtype()
    for name, cls in component_classes(path, read_index(path)).items():
        if not issubclass(cls, nn.Module):
            continue
        loaded, built = load_whole(cls, path / name, dtype), skeleton(cls, path / name, dtype)
        sharding.set_dtype(built, dtype_plan(built, dtype))
        expected = {key: (tensor.shape, tensor.dtype) for key, tensor in loaded.named_parameters()}
        assert {key: (tensor.shape, tensor.dtype) for key, tensor in built.named_parameters()} == expected, name
        assert all(tensor.is_meta for tensor in built.parameters())
        buffers = dict(built.named_buffers())
        for key, buffer in loaded.named_buffers():
            assert buffers.pop(key).dtype is buffer.dtype, (name, key)
            if key not in loaded.state_dict():
                assert torch.equal(dict(built.named_buffers())[key], buffer), (name, key)
        assert not buffers and not built.training
    assert torch.get_default_dtype() is default
