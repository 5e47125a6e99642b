"""One load of a sharded transformer and its first gather, in a process of its own: the peak of memory is theirs."""

import contextlib
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import accelerate
import diffusers
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

import sharding
from bench.textbook import textbook_shard
from runner.components.skeleton import dtype_plan, skeleton
from runner.components.source import Source
from runner.components.whole import load_whole
from runner.world import World
from weights.checkpoint import Checkpoint

CLASS = diffusers.FluxTransformer2DModel
DTYPE = torch.bfloat16
# A method fills and shards; it returns the model and the bytes of the files that this rank read.
Method = Callable[[Path, World, DeviceMesh], tuple[nn.Module, int]]


@dataclass(frozen=True)
class Load:
    """On one rank. `anonymous` and `mapped`: the peaks of its memory above the start until the weights are sharded, the
    latter being pages of files. `gathered_seconds` and `gathered_anonymous`: for gathering each block once thereafter,
    and the peak until then. `digest` stands for the bits of its slices."""

    seconds: float
    bytes_read: int
    anonymous: int
    mapped: int
    gathered_seconds: float
    gathered_anonymous: int
    digest: int


def load_once(method: str, folder: Path, rendezvous: str, rank: int, size: int, device_name: str) -> Load:
    """For a fresh process, one on each rank. Collective between them."""
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore", UserWarning)  # of torch about its own group, once for each broadcast
    device = torch.device(device_name)
    backend = (
        "gloo" if device.type == "cpu" else f"cpu:gloo,{device.type}:{dist.get_default_backend_for_device(device)}"
    )
    if device.type != "cpu":
        torch.accelerator.set_device_index(device.index)
    dist.init_process_group(backend, init_method=rendezvous, rank=rank, world_size=size, timeout=timedelta(seconds=120))
    try:
        world = World(rank, size, device, dist.new_group(backend="gloo"))
        return _measured(METHODS[method], folder, world, sharding.build_mesh(device.type))
    finally:
        dist.destroy_process_group()


def _measured(method: Method, folder: Path, world: World, mesh: DeviceMesh) -> Load:
    world.gather(None)
    with measured_peaks() as peaks:
        start = time.perf_counter()
        model, bytes_read = method(folder, world, mesh)
        world.gather(None)
        loaded = time.perf_counter()
        time.sleep(0.005)  # so that the peak is seen
        anonymous, mapped = peaks
        gathering = time.perf_counter()
        sharding.prime(model)  # what a first forward gathers, whoever sharded
        gathered = time.perf_counter()
    return Load(loaded - start, bytes_read, anonymous, mapped, gathered - gathering, peaks[0], digest(model))


def _ours(folder: Path, world: World, mesh: DeviceMesh) -> tuple[nn.Module, int]:
    module = skeleton(Source(folder.name, CLASS, folder), DTYPE)
    sharding.set_dtype(module, dtype_plan(module, DTYPE))
    sharding.shard(module, mesh)
    return module, sharding.load_sharded(module, Checkpoint(folder), device=world.device).bytes_read


def _whole_then_shard(folder: Path, world: World, mesh: DeviceMesh) -> tuple[nn.Module, int]:
    """The runner's way for weights that only the library can read: a whole copy on each rank before it is sharded."""
    return textbook_shard(load_whole(Source(folder.name, CLASS, folder), DTYPE), mesh), _stored(folder)


def _mapped_then_shard(folder: Path, world: World, mesh: DeviceMesh) -> tuple[nn.Module, int]:
    """Weights that diffusers maps from the file; on the CPU, FSDP copies this rank's slices out of them."""
    model = CLASS.from_pretrained(folder, torch_dtype=DTYPE, local_files_only=True).eval()
    return textbook_shard(model, mesh), _stored(folder)


def _broadcast(folder: Path, world: World, mesh: DeviceMesh) -> tuple[nn.Module, int]:
    """Rank 0 reads, the others receive: the recipe of
    https://docs.pytorch.org/tutorials/intermediate/FSDP_tutorial.html#state-dict-with-dcp-apis."""
    with accelerate.init_empty_weights(include_buffers=False):
        model = CLASS.from_config(CLASS.load_config(folder, local_files_only=True)).to(DTYPE).eval()
    textbook_shard(model, mesh)
    whole: dict[str, torch.Tensor] = {}
    if world.rank == 0:
        for file in sorted(folder.glob("*.safetensors")):
            whole |= load_file(file)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, whole, options=options)
    return model, _stored(folder) if world.rank == 0 else 0


METHODS: dict[str, Method] = {
    "ours": _ours,
    "whole, then shard": _whole_then_shard,
    "mapped, then shard": _mapped_then_shard,
    "broadcast from rank 0": _broadcast,
}


def _stored(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def digest(model: nn.Module) -> int:
    """Of every parameter's name and of this rank's slice, bit for bit."""
    digest = 0
    for name, parameter in sorted(model.named_parameters()):
        local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        digest = zlib.crc32(name.encode(), digest)
        digest = zlib.crc32(local.detach().cpu().contiguous().view(torch.uint8).numpy(), digest)
    return digest


@contextlib.contextmanager
def measured_peaks() -> Iterator[list[int]]:
    """[anonymous, mapped] bytes at their peaks above the start, sampled each millisecond."""
    start, peaks, done = _resident(), [0, 0], threading.Event()

    def sample() -> None:
        while not done.wait(0.001):
            peaks[:] = (max(peak, now - then) for peak, now, then in zip(peaks, _resident(), start, strict=True))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield peaks
    finally:
        done.set()
        thread.join()


def _resident() -> tuple[int, int]:
    status = Path("/proc/self/status").read_text()
    anonymous, mapped = (int(status.split(f"{field}:")[1].split()[0]) * 1024 for field in ("RssAnon", "RssFile"))
    return anonymous, mapped
