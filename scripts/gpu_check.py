"""Run what needs an accelerator, and write one file that whoever has one can send back.

  make gpu-check      or      python scripts/gpu_check.py [--minutes 10] [--out gpu-check.md]

The tests that are marked gpu, the placements against the stock pipeline on the same device, and the benchmarks, each in
a process of its own, until the minutes are over. The file has the versions, each command with its result and the end of
what it printed; it is written anew after each of them. Exit code 1 where anything failed, was not reached, or there is
no accelerator.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import BinaryIO

import psutil

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "numpy")
TAIL = 60  # lines kept of what a command printed
# In a process of its own, as all that touches a device: a driver that hangs or crashes must not take the file with it.
FIND_DEVICES = """
import json, torch
accelerator = torch.accelerator.current_accelerator()
kind = accelerator.type if accelerator is not None and torch.accelerator.is_available() else None
name = getattr(torch.get_device_module(kind), "get_device_name", lambda index: "") if kind else None
devices = [f"{kind}:{index} {name(index)}" for index in range(torch.accelerator.device_count())] if kind else []
print(json.dumps({"kind": kind or "cpu", "devices": devices}))
"""


@dataclass(frozen=True)
class Step:
    name: str
    command: Sequence[str]
    seconds: float  # at most


@dataclass(frozen=True)
class Result:
    step: Step
    outcome: str  # "ok", "failed (1)", "killed (SIGSEGV)", "ran out of time", "interrupted", "not reached"
    seconds: float
    output: str


@dataclass(frozen=True)
class Devices:
    kind: str = "cpu"
    names: Sequence[str] = ()


def steps(devices: Devices) -> list[Step]:
    """What tells most first: bits, then order on streams, then figures."""
    python, ranks = sys.executable, max(len(devices.names), 1)
    pytest = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    torchrun = [python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    families = "flux or wan or pixart"
    output = f"outputs/gpu-check-{time.strftime('%Y%m%d-%H%M%S')}"
    found = [
        Step("tests marked gpu", [*pytest, "-m", "gpu", "tests"], 120),
        Step("resident, bitwise", [*pytest, "tests/distributed/test_generate.py", "-k", "every_family and 1"], 180),
        Step("sharded, bitwise", [*pytest, "tests/distributed/test_sharded.py", "-k", families], 180),
        Step("offloaded, bitwise", [*pytest, "tests/distributed/test_offloaded.py", "-k", families], 180),
        Step("groups, bitwise", [*pytest, "tests/distributed/test_groups.py", "-k", "flux", "-m", "not slow"], 120),
        Step(
            "pictures, verified",
            [*torchrun, "scripts/generate.py", "--verify", "2", "job.profile=true", f"job.output={output}"],
            120,
        ),
        Step("where the time went", [python, "scripts/trace.py", output], 30),
        Step("overhead", [python, "scripts/bench_overhead.py", "--device", devices.kind, "--calls", "30"], 120),
        Step("offload and groups", [python, "scripts/bench_group.py", "--quick"], 120),
        Step("LoRA", [*torchrun, "scripts/bench_lora.py", "resident", "--rounds", "1"], 180),
    ]
    if ranks > 1:
        on_ranks = ["tests/distributed/test_teams.py", "tests/distributed/test_one_by_one.py", "-m", "not slow"]
        found += [
            Step("teams, and one by one", [*pytest, *on_ranks], 120),
            Step("modes", [*torchrun, "scripts/bench_sharding.py", "--part", "modes", "--rounds", "0.3"], 180),
        ]
    return found


def run(steps: Sequence[Step], seconds: float, told: Callable[[Sequence[Result]], None]) -> list[Result]:
    """Each step in turn, within the time that is left. `told` hears after each of all of them: should this process not
    get to its end, what was found until then is known. After Ctrl-C or SIGTERM the rest is not reached."""
    deadline, results = time.monotonic() + seconds, []
    for step in steps:
        left = min(step.seconds, deadline - time.monotonic())
        result = _run_one(step, left) if left > 1 else Result(step, "not reached", 0.0, "")
        if result.outcome == "interrupted":
            deadline = 0.0
        results.append(result)
        print(f"{step.name:20} {result.outcome:16} {result.seconds:6.1f} s", flush=True)
        told([*results, *(Result(later, "not reached", 0.0, "") for later in steps[len(results) :])])
    return results


def _run_one(step: Step, seconds: float) -> Result:
    """What it prints goes to a file: a pipe would be held open by ranks that outlive their torchrun."""
    start = time.monotonic()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryFile() as printed:
        try:
            process = psutil.Popen(step.command, cwd=ROOT, env=environment, stdout=printed, stderr=subprocess.STDOUT)
        except OSError as error:
            return Result(step, f"failed ({error})", 0.0, "")
        try:
            outcome = _outcome(process.wait(seconds))
        except psutil.TimeoutExpired:
            outcome = "ran out of time"
        except KeyboardInterrupt:
            outcome = "interrupted"
        _end(process)
        return Result(step, outcome, time.monotonic() - start, _text_of(printed))


def _outcome(code: int) -> str:
    if code < 0:
        return f"killed ({signal.Signals(-code).name})"
    return f"failed ({code})" if code else "ok"


def _end(process: psutil.Popen) -> None:
    """With all that it has started: ranks that stay behind would hold the device's memory, and the next step fails."""
    if not process.is_running():
        return
    for one in [*process.children(recursive=True), process]:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()


def _text_of(printed: BinaryIO) -> str:
    printed.seek(0)
    return printed.read().decode(errors="replace")


def report(results: Sequence[Result], devices: Sequence[str]) -> str:
    """As Markdown."""
    lines = ["# What an accelerator said", ""]
    lines += [f"- {name} {_version(name)}" for name in LIBRARIES]
    lines += [f"- Python {platform.python_version()}, {platform.platform()}"]
    lines += [f"- device: {device}" for device in devices or ["none: nothing below was run on an accelerator"]]
    lines += ["", "| step | result | seconds |", "| --- | --- | --- |"]
    lines += [f"| {result.step.name} | {result.outcome} | {result.seconds:.1f} |" for result in results]
    for result in results:
        kept = result.output.strip().splitlines()[-TAIL:]
        lines += [
            "",
            f"## {result.step.name}: {result.outcome}",
            "",
            "```",
            " ".join(result.step.command),
            *kept,
            "```",
        ]
    return "\n".join(lines) + "\n"


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "is not installed"


def found_devices() -> tuple[Devices, Result]:
    """What torch finds, and how looking for it went."""
    looked = _run_one(Step("devices", [sys.executable, "-c", FIND_DEVICES], 60), 60)
    if looked.outcome != "ok":
        return Devices(), looked
    found = json.loads(looked.output.strip().splitlines()[-1])
    return Devices(found["kind"], found["devices"]), looked


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="for everything (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("gpu-check.md"), help="the file (default: %(default)s)")
    options = parser.parse_args()
    began = time.monotonic()
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)  # which a shell's background job ignores
    devices, looked = found_devices()

    def told(results: Sequence[Result]) -> None:
        whole = options.out.with_name(f".{options.out.name}.part")
        whole.write_text(report([looked, *results], devices.names), encoding="utf-8")
        whole.replace(options.out)

    told([])
    results = run(steps(devices), options.minutes * 60 - (time.monotonic() - began), told)
    print(f"-> {options.out}")
    return 0 if devices.names and all(result.outcome == "ok" for result in [looked, *results]) else 1


if __name__ == "__main__":
    sys.exit(main())
