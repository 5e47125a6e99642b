"""A component's call as it is kept: what it was called with as a fingerprint, what it gave as JSON and raw bytes."""

import sys
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput
from torch import nn
from transformers.utils import ModelOutput

_OUTPUTS = (BaseOutput, ModelOutput)
_ALIGNMENT = 64  # elements: a view that begins elsewhere in its memory begins there again, as kernels see it


class NotKept(Exception):
    """A call that a log cannot answer: why."""


def fingerprint(component: str, args: Any, kwargs: Any) -> str:
    """Equal for calls of a component that give the same bits. Random generators count by their presence: what a call
    draws from them is kept with its result. Raises NotKept for arguments that may hold state, such as a cache."""
    text = "\n".join([component, *_described(args), *_described(kwargs)])
    return f"{zlib.crc32(text.encode()):08x}"


def _described(value: Any) -> Iterator[str]:
    """Depth first: the kind of each value, and its content."""
    match value:
        case torch.Tensor():
            yield f"tensor {value.dtype} {tuple(value.shape)} {zlib.crc32(raw_bytes(value)):08x}"
        case None | bool() | int() | str():
            yield f"{type(value).__name__} {value!r}"
        case float():
            yield f"float {value.hex()}"
        case tuple() | list():  # torch.Size too
            yield f"{type(value).__name__} of {len(value)}"
            for inner in value:
                yield from _described(inner)
        case Mapping():
            yield f"{type(value).__name__} of {len(value)}"
            for key, inner in value.items():
                yield f"key {key!r}"
                yield from _described(inner)
        case torch.dtype():
            yield str(value)
        case torch.device():
            yield f"device {value.type}"
        case torch.Generator():
            yield "generator"
        case np.ndarray() | np.generic():
            yield f"array {value.dtype} {value.shape} {zlib.crc32(np.ascontiguousarray(value).tobytes()):08x}"
        case _:
            raise NotKept(f"it is called with a {type(value).__name__}, which may keep state")


def raw_bytes(tensor: torch.Tensor) -> memoryview:
    """The elements, row by row, in host memory; a copy of its own where the tensor is not a plain one there.

    Raises NotKept for a tensor that is more than its elements (sharded, quantized, sparse)."""
    if type(tensor) not in (torch.Tensor, nn.Parameter) or tensor.layout is not torch.strided:
        raise NotKept(f"a {type(tensor).__name__} ({tensor.layout}) is no plain tensor")
    dense = tensor.detach().resolve_conj().resolve_neg().to("cpu").contiguous()
    row = dense.as_strided((dense.numel(),), (1,))  # `reshape` may leave a single element its stride of 0
    return memoryview(row.view(torch.uint8).numpy())  # type: ignore[arg-type]


def pack(output: Any, inputs: Any) -> tuple[Any, list[memoryview]]:
    """How `output` is put together, as JSON, and the bytes of its tensors, in order, in memory of their own.

    Raises NotKept where it is more than tensors and numbers in tuples, lists, dicts and model outputs, or shares memory
    with `inputs` or within itself: a copy of it would not see what is written into the other.
    """
    body: list[memoryview] = []
    taken = {tensor.untyped_storage().data_ptr() for tensor in _tensors(inputs)}
    return _packed(output, body, taken), body


def _packed(value: Any, body: list[memoryview], taken: set[int]) -> Any:
    if isinstance(value, torch.Tensor):
        return _packed_tensor(value, body, taken)
    if value is None or isinstance(value, bool | int | float | str):
        return {"is": "value", "value": value}
    if isinstance(value, _OUTPUTS):
        kind = f"{type(value).__module__}:{type(value).__qualname__}"
        inside = {name: _packed(inner, body, taken) for name, inner in value.items()}
        return {"is": "output", "class": kind, "items": inside}
    if type(value) in (tuple, list):
        return {"is": type(value).__name__, "items": [_packed(inner, body, taken) for inner in value]}
    if type(value) is dict and all(isinstance(key, str) for key in value):
        return {"is": "dict", "items": {name: _packed(inner, body, taken) for name, inner in value.items()}}
    raise NotKept(f"it gives a {type(value).__name__}")


def _packed_tensor(tensor: torch.Tensor, body: list[memoryview], taken: set[int]) -> Any:
    raw, memory = raw_bytes(tensor), tensor.untyped_storage().data_ptr()
    if tensor.is_conj() or tensor.is_neg() or tensor.requires_grad:
        raise NotKept("it gives a tensor that is a view with arithmetic of its own, or part of a graph")
    if any(size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)):
        raise NotKept("it gives an expanded tensor")
    if tensor.numel():
        if memory in taken:
            raise NotKept("its result shares memory with what it was called with, or with itself")
        taken.add(memory)
    if tensor.device.type == "cpu":  # the pipeline may write into its result; `raw` may be that very memory
        raw = memoryview(bytes(raw))
    body.append(raw)
    return {
        "is": "tensor",
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
        "stride": list(tensor.stride()),
        "offset": tensor.storage_offset() % _ALIGNMENT,
        "device": tensor.device.type,
    }


def unpack(tree: Any, body: bytearray, device: torch.device) -> Any:
    """What `pack` took apart, in tensors that are made here and now: inference tensors in inference mode, normal ones
    in normal mode, as the component would make them. Tensors that were on an accelerator come up on `device`."""
    return _unpacked(tree, memoryview(body), device)[0]


def _unpacked(tree: Any, body: memoryview, device: torch.device) -> tuple[Any, memoryview]:
    """The value, and the bytes that are left."""
    if tree["is"] == "value":
        return tree["value"], body
    if tree["is"] == "tensor":
        return _unpacked_tensor(tree, body, device)
    is_named = isinstance(tree["items"], dict)
    names = list(tree["items"]) if is_named else range(len(tree["items"]))
    items = []
    for name in names:
        item, body = _unpacked(tree["items"][name], body, device)
        items.append(item)
    if tree["is"] == "output":
        return _output_class(tree["class"])(**dict(zip(names, items, strict=True))), body
    return (
        dict(zip(names, items, strict=True)) if is_named else tuple(items) if tree["is"] == "tuple" else items
    ), body


def _unpacked_tensor(tree: Any, body: memoryview, device: torch.device) -> tuple[torch.Tensor, memoryview]:
    dtype, shape = getattr(torch, tree["dtype"]), tree["shape"]
    where = device if tree["device"] == device.type else torch.device(tree["device"])
    if tree["offset"] and 0 not in shape:
        extent = sum((size - 1) * stride for size, stride in zip(shape, tree["stride"], strict=True)) + 1
        memory = torch.empty(tree["offset"] + extent, dtype=dtype, device=where)
        tensor = memory.as_strided(shape, tree["stride"], tree["offset"])
    else:
        tensor = torch.empty_strided(shape, tree["stride"], dtype=dtype, device=where)
    num_bytes = tensor.numel() * dtype.itemsize
    if num_bytes:
        raw = torch.empty(num_bytes, dtype=torch.uint8)  # aligned, which a place in the body need not be
        raw.copy_(torch.frombuffer(body[:num_bytes], dtype=torch.uint8))
        tensor.copy_(raw.view(dtype).view(shape))
    return tensor, body[num_bytes:]


def _output_class(kind: str) -> Any:
    """A class of outputs by its name, among those that are loaded already: a log must not name what to import."""
    module, _, name = kind.partition(":")
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    if not (isinstance(found, type) and issubclass(found, _OUTPUTS)):
        raise NotKept(f"{kind} is no class of outputs here")
    return found


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _tensors(inner)
    elif isinstance(value, tuple | list):
        for inner in value:
            yield from _tensors(inner)
