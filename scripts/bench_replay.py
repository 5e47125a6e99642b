"""What a call log costs: seconds of the compute thread a call, and of the disk, by the size of a call's result.

A module of one sleep stands for the denoiser: what it takes is compute, all else is the log's. `--inputs` are the bytes
that it is called with (latents and prompt embeddings), which are fingerprinted before and after each call; a component
of `--modules` modules is looked through for state. `off` is the same pipeline without a log.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from bench.ratios import note
from torch import nn

from runner.calls.boundary import Boundaries
from runner.calls.lockstep import Lockstep
from runner.calls.steps import Steps
from runner.components.component import Component
from runner.components.resolver import Leave, resolve
from runner.output.call_log import CallLog
from runner.progress import Progress
from runner.request import Request
from runner.resume.replay import Replay, Resume
from weights.overrides import Overrides

MIB = 1 << 20


class Sleeper(nn.Module):
    """Takes `seconds`, and gives a tensor of so many bytes."""

    def __init__(self, seconds: float, num_bytes: int, num_modules: int, device: torch.device) -> None:
        super().__init__()
        self.inner = nn.ModuleList(nn.Identity() for _ in range(num_modules))
        self.seconds, self.result = seconds, torch.randn(num_bytes // 2, dtype=torch.bfloat16, device=device)

    def forward(self, latents: torch.Tensor, embeddings: torch.Tensor) -> tuple[torch.Tensor]:
        time.sleep(self.seconds)
        return (self.result.clone(),)


def main() -> None:
    options = _parse()
    device = torch.device(options.device)
    print(
        f"{device}, {options.calls} calls of {options.seconds:g} s, inputs {options.inputs:g} MiB, in {options.folder}"
    )
    print("result MiB   compute thread, ms a call   of it   write and sync, ms a call   replay, ms a call   no log, us")
    for size in options.sizes:
        on, written, replayed, off = _measure(options, int(size * MIB), device)
        note(f"a call log of {size:g} MiB a call: a call with it / without", [1 + on / options.seconds], 1.01)
        print(
            f"{size:10.1f}   {on * 1e3:25.1f} {on / options.seconds:7.2%}   {written * 1e3:25.1f}   "
            f"{replayed * 1e3:17.1f}   {off * 1e6:10.1f}"
        )


def _measure(options: argparse.Namespace, num_bytes: int, device: torch.device) -> tuple[float, float, float, float]:
    """Seconds a call: of the log on the compute thread, of writing, of replaying, and of the layer without a log."""
    module = Sleeper(options.seconds, num_bytes, options.modules, device)
    component = Component("transformer", module, "denoise")
    progress, lockstep = Progress(), Lockstep(None)
    boundaries = Boundaries([component], resolve([component], Leave.component), device.type, lockstep, progress)
    half = int(options.inputs * MIB / 2)
    inputs = [torch.randn(half // 4, device=device), torch.randn(half // 4, device=device)]

    def pass_through(calls: int) -> list[float]:
        seconds = []
        for _ in range(calls):
            start = time.perf_counter()
            module(*inputs)
            seconds.append(time.perf_counter() - start - module.seconds)
        return seconds

    module.seconds = 0.0
    bare = statistics.median(pass_through(50))
    steps = Steps(SimpleNamespace(), Overrides(), progress)
    replay = Replay([component], boundaries, device, lockstep, progress, steps)
    off = statistics.median(pass_through(50)) - bare
    module.seconds = options.seconds
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path, request = Path(folder) / "calls" / "x.log", Request("x", 0, {}, id="x")
        writing = _timed_sync(path.parent)
        log = CallLog(path, {}, writes=True, say=print)
        with torch.inference_mode(), replay.request(request, Resume(log, lambda: None), None):
            on = statistics.median(pass_through(options.calls)) - bare
        written = writing() / options.calls
        module.seconds = 0.0
        log = CallLog(path, {}, writes=True, say=print)
        with torch.inference_mode(), replay.request(request, Resume(log, lambda: None), None):
            replayed = statistics.median(pass_through(options.calls))
        assert replay.kept.calls_replayed == replay.kept.calls_logged == options.calls
    replay.close()
    return on, written, replayed, off


def _timed_sync(folder: Path) -> Any:
    """Seconds that the log's thread spends in write and fdatasync from now on."""
    spent = [0.0]

    def timed(function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                spent[0] += time.perf_counter() - start

        return call

    before = os.write, os.fdatasync
    os.write, os.fdatasync = map(timed, before)  # type: ignore[assignment]

    def total() -> float:
        os.write, os.fdatasync = before  # type: ignore[assignment]
        return spent[0]

    return total


def _parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=float, nargs="+", default=[0.5, 1.0, 4.2, 15.0], help="MiB of a call's result")
    parser.add_argument("--inputs", type=float, default=12.0, help="MiB that a call takes (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=0.6, help="compute a call (default: %(default)s)")
    parser.add_argument("--calls", type=int, default=20, help="calls (default: %(default)s)")
    parser.add_argument("--modules", type=int, default=1500, help="in the component (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="a torch device (default: %(default)s)")
    parser.add_argument("--folder", default=None, help="where to write (default: the temporary folder)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
