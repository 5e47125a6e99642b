"""Run what needs an accelerator, and write one file that whoever has one can send back.

  make gpu-check      or      python scripts/gpu_check.py [--minutes 10] [--out gpu-check.md]

The tests that are marked gpu, the placements against the stock pipeline on the same device, and the benchmarks, each in
a process of its own, until the minutes are over. The file has the versions, each command with its result and the end of
what it printed. Exit code 1 where anything failed, was not reached, or there is no accelerator.
"""

import argparse
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "numpy")
TAIL = 60  # lines kept of what a command printed


@dataclass(frozen=True)
class Step:
    name: str
    command: Sequence[str]
    seconds: float  # at most


@dataclass(frozen=True)
class Result:
    step: Step
    outcome: str  # "ok", "failed (1)", "ran out of time", "not reached"
    seconds: float
    output: str


def steps(num_devices: int) -> list[Step]:
    """What tells most first: bits, then order on streams, then figures."""
    python, ranks = sys.executable, max(num_devices, 1)
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
        Step("overhead", [python, "scripts/bench_overhead.py", "--device", _device(), "--calls", "30"], 120),
        Step("LoRA", [*torchrun, "scripts/bench_lora.py", "resident", "--rounds", "1"], 180),
    ]
    if ranks > 1:
        on_ranks = ["tests/distributed/test_teams.py", "tests/distributed/test_one_by_one.py", "-m", "not slow"]
        found += [
            Step("teams, and one by one", [*pytest, *on_ranks], 120),
            Step("modes", [*torchrun, "scripts/bench_sharding.py", "--part", "modes", "--rounds", "0.3"], 180),
        ]
    return found


def run(steps: Sequence[Step], seconds: float) -> list[Result]:
    """Each step in turn, within the time that is left."""
    deadline, results = time.monotonic() + seconds, []
    for step in steps:
        left = min(step.seconds, deadline - time.monotonic())
        result = _run_one(step, left) if left > 5 else Result(step, "not reached", 0.0, "")
        results.append(result)
        print(f"{step.name:20} {result.outcome:16} {result.seconds:6.1f} s", flush=True)
    return results


def _run_one(step: Step, seconds: float) -> Result:
    start = time.monotonic()
    try:
        done = subprocess.run(
            step.command, cwd=ROOT, timeout=seconds, text=True, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        outcome, output = "ok" if done.returncode == 0 else f"failed ({done.returncode})", done.stdout
    except subprocess.TimeoutExpired as expired:
        printed = expired.stdout or b""
        outcome, output = "ran out of time", printed.decode(errors="replace") if isinstance(printed, bytes) else printed
    return Result(step, outcome, time.monotonic() - start, output)


def report(results: Sequence[Result], devices: Sequence[str]) -> str:
    """As Markdown."""
    lines = ["# What an accelerator said", ""]
    lines += [f"- {name} {version(name)}" for name in LIBRARIES]
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


def found_devices() -> list[str]:
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None or not torch.accelerator.is_available():
        return []
    module = torch.get_device_module(accelerator.type)
    name = getattr(module, "get_device_name", lambda index: accelerator.type)
    return [f"{accelerator.type}:{index} {name(index)}" for index in range(torch.accelerator.device_count())]


def _device() -> str:
    accelerator = torch.accelerator.current_accelerator()
    return accelerator.type if accelerator is not None and torch.accelerator.is_available() else "cpu"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="for everything (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("gpu-check.md"), help="the file (default: %(default)s)")
    options = parser.parse_args()
    devices = found_devices()
    results = run(steps(len(devices)), options.minutes * 60)
    options.out.write_text(report(results, devices), encoding="utf-8")
    print(f"-> {options.out}")
    return 0 if devices and all(result.outcome == "ok" for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
