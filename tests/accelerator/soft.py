"""The software accelerator "soft": built once, and made torch's accelerator in this process by `register()`.

Device memory faults where the CPU touches it and is NaN when fresh; copies run as late as they may; what is not ordered
by streams, events and threads is reported. See csrc/model.h.
"""

import hashlib
import os
import shutil
import sys
import sysconfig
import tempfile
import types
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.accelerator import host_threads

NUM_DEVICES = 2
BACKEND = "softgloo"


def missing_tools() -> list[str]:
    """What a build needs and this machine does not have."""
    headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
    tools = [tool for tool in ("g++", "ninja") if shutil.which(tool, path=_path()) is None]
    return tools + ([] if headers.exists() else [f"{headers} (python3-dev)"])


def _path() -> str:
    """With the folder of this Python, where pip puts ninja and no shell looks unless the environment is activated."""
    return f"{os.environ.get('PATH', os.defpath)}{os.pathsep}{Path(sys.executable).parent}"


@cache
def register() -> None:
    """Make "soft" the process's accelerator. Before torch is asked for one; for good."""
    torch.utils.rename_privateuse1_backend("soft")
    library = _library()
    torch.ops.load_library(str(library))
    torch._register_device_module("soft", _device_module())
    torch.utils.generate_methods_for_privateuse1_backend(for_packed_sequence=False, for_storage=True)
    # The group's own gloo carries the bytes of its device tensors too: see csrc/collectives.cpp.
    dist.Backend.register_backend(BACKEND, _group_of_the_device, devices=["soft"])
    host_threads.follow(library)


def _library() -> Path:
    """The built library of these sources and this torch. Each builder has a folder of its own, and the last to be done
    wins: torch's lock around a build, and around a mere load, would stay where a rank is killed that holds it."""
    sources = sorted((Path(__file__).resolve().parent / "csrc").iterdir())
    key = hashlib.sha256(b"".join([torch.__version__.encode(), *(source.read_bytes() for source in sources)]))
    cache_home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    library = cache_home / "torch_extensions" / f"soft-{key.hexdigest()[:16]}.so"
    if library.exists():
        return library
    from torch.utils import cpp_extension  # which imports setuptools: not for a process that only loads

    library.parent.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("MAX_JOBS", "1")
    os.environ["PATH"] = _path()
    with tempfile.TemporaryDirectory(prefix=".soft-", dir=library.parent) as folder:
        cpp_extension.load(
            "soft_accelerator",
            [str(source) for source in sources if source.suffix == ".cpp"],
            extra_cflags=["-O1", "-std=c++20"],
            build_directory=folder,
            is_python_module=False,
        )
        os.replace(Path(folder) / "soft_accelerator.so", library)
    return library


def _group_of_the_device(store: dist.Store, rank: int, size: int, timeout: timedelta) -> dist.Backend:
    return dist.ProcessGroupGloo(store, rank, size, timeout=timeout)


def destroy_group(group: dist.ProcessGroup) -> None:
    """torch 2.13 looks for the backend of a device that it does not know among names in capitals, does not find it, and
    would ask nothing for its hooks."""
    if any(device.type == "soft" for device in group._device_types):
        group._set_default_backend(dist.ProcessGroup.BackendType.CUSTOM)
    dist.destroy_process_group(group)


def have_inference_mode() -> None:
    """The runner gives no_grad to a device type that it does not know; this one has an inference mode, as cuda has."""
    from runner.components import resolver

    resolver._INFERENCE = {**resolver._INFERENCE, "soft": torch.inference_mode}


def reports() -> list[str]:
    """The accesses that nothing ordered, since the last call."""
    return list(torch.ops.soft.take_reports())


def end_everything() -> None:
    """What is under way ends, and what was reported is forgotten."""
    for device in range(NUM_DEVICES):
        torch.accelerator.synchronize(device)
    reports()


@contextmanager
def nothing_unordered() -> Iterator[None]:
    """Raises AssertionError with the places where something is."""
    end_everything()
    yield
    found = reports()
    assert not found, f"{len(found)} unordered accesses; the first: {found[0]}"


def _device_module() -> types.ModuleType:
    """`torch.soft`, with what torch and FSDP ask of a device's module."""
    accelerator = torch.accelerator
    module: Any = types.ModuleType("torch.soft")
    module.is_available = module.is_initialized = lambda: True
    module._is_in_bad_fork = lambda: False
    module.device_count = lambda: NUM_DEVICES  # torch.accelerator asks here
    module.current_device = accelerator.current_device_index
    module.set_device = lambda device: accelerator.set_device_index(_index(device))
    module.device = lambda device: accelerator.device_index(_index(device))
    module.Stream = lambda device=None, priority=0: torch.Stream(
        torch.device("soft", accelerator.current_device_index()) if device is None else device
    )
    module.Event = lambda *args, **kwargs: torch.Event("soft")
    module.stream = lambda stream: stream  # torch.Stream is its own context
    module.current_stream = accelerator.current_stream
    module.set_stream = accelerator.set_stream
    module.synchronize = accelerator.synchronize
    for name in ("memory_allocated", "max_memory_allocated", "reset_peak_memory_stats", "memory_reserved"):
        setattr(module, name, getattr(accelerator, name))
    module.empty_cache = accelerator.empty_cache
    # Random numbers are the CPU's: a kernel draws them from its default generator.
    module.manual_seed = module.manual_seed_all = lambda seed: None
    module.get_rng_state = lambda device="soft": torch.get_rng_state()
    module.set_rng_state = lambda state, device="soft": torch.set_rng_state(state)
    module.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
    module.is_bf16_supported = lambda: True
    return module


def _index(device: Any) -> int:
    return device if isinstance(device, int) else torch.device(device).index or 0
