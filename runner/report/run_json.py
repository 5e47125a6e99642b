"""run.json at the end of a run: configuration, placement and mode of each component, figures, failures."""

import platform
import resource
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from runner.config import RunConfig, to_dict
from runner.errors import ExitCode
from runner.job.job import Outcome
from runner.media.sheet import contact_sheet
from runner.output.run_file import RunFile
from runner.pipeline.pipeline import Pipeline
from runner.world import World

LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "omegaconf")


def measure(pipeline: Pipeline, device: torch.device) -> dict[str, Any]:
    """This rank's figures: seconds and calls by stage, and peak bytes of the process and of the device."""
    figures: dict[str, Any] = {
        "seconds_per_stage": {stage: round(s, 4) for stage, s in pipeline.timings.seconds.items()},
        "calls_per_stage": dict(pipeline.timings.calls),
        # Linux counts in KiB, macOS in bytes.
        "peak_host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * (1 if platform.system() == "Darwin" else 1024),
    }
    if device.type != "cpu" and hasattr(torch.accelerator, "max_memory_allocated"):
        figures["peak_device_bytes"] = torch.accelerator.max_memory_allocated(device)
    return figures


@dataclass(frozen=True)
class Ending:
    """How the run ended, as its run.json and its exit code say."""

    code: ExitCode
    left: int  # requests neither made nor failed
    stopped: str | None  # by what, when it was asked to stop with work left

    @classmethod
    def of(cls, outcomes: Sequence[Outcome], requests: int, stop_reason: str | None) -> "Ending":
        left = requests - len(outcomes)
        if left:
            return cls(ExitCode.STOPPED, left, stop_reason)
        return cls(ExitCode.FAILED if any(outcome.failure for outcome in outcomes) else ExitCode.DONE, 0, None)


def write_report(
    config: RunConfig,
    pipeline: Pipeline,
    outcomes: Sequence[Outcome],
    world: World,
    seconds: dict[str, float],
    *,
    ending: Ending,
    run_file: RunFile,
) -> None:
    """Write run.json and the contact sheet. Collective: every rank tells its figures, rank 0 writes."""
    ranks = world.gather(measure(pipeline, world.device))
    if world.rank != 0:
        return
    output = Path(config.job.output)
    report = {
        "state": ending.code.name.lower(),
        "exit_code": ending.code,
        "stopped": ending.stopped,
        "config": to_dict(config),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        "world_size": world.size,
        "device": str(world.device),
        "components": {
            component.name: {
                "class": type(component.module).__name__,
                "stage": component.stage,
                "bytes": component.num_bytes,
                "placement": str(component.placement),
                "devices": component.placement.devices,
                "loading": asdict(pipeline.loadings[component.name]),
                "mode": pipeline.decisions[component.name].mode.value,
                "reason": pipeline.decisions[component.name].reason,
            }
            for component in pipeline.components
        },
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "ranks": ranks,
        "finished": sum(outcome.line is not None for outcome in outcomes),
        "finished_before": sum(outcome.line is not None and outcome.earlier for outcome in outcomes),
        "left": ending.left,
        "failures": [
            {"id": o.request.id, "prompt": o.request.prompt, "seed": o.request.seed, "reason": o.reason}
            for o in outcomes
            if o.failure
        ],
    }
    run_file.write(report)
    done = [(output / o.line["file"], f"{o.request.prompt} #{o.request.seed}") for o in outcomes if o.line]
    contact_sheet(output / "contact-sheet.png", done)
