"""What a run leaves behind beside its pictures: run.json, the contact sheet, and the summary line."""

import json
import platform
import resource
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from runner.config import RunConfig
from runner.distributed import World
from runner.job import Outcome
from runner.outputs import contact_sheet, write_whole
from runner.pipeline import Pipeline

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


def write_report(
    config: RunConfig, pipeline: Pipeline, outcomes: Sequence[Outcome], world: World, seconds: dict[str, float]
) -> None:
    """Write run.json and the contact sheet. Collective: every rank tells its figures, rank 0 writes."""
    ranks = world.gather(measure(pipeline, world.device))
    if world.rank != 0:
        return
    output = Path(config.job.output)
    report = {
        "config": OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        "world_size": world.size,
        "device": str(world.device),
        "components": {
            component.name: {
                "class": type(component.module).__name__,
                "stage": component.stage,
                "bytes": component.num_bytes,
                "placement": component.placement,
                "mode": pipeline.decisions[component.name].mode.value,
                "reason": pipeline.decisions[component.name].reason,
            }
            for component in pipeline.components
        },
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "ranks": ranks,
        "finished": sum(outcome.line is not None for outcome in outcomes),
        "failures": [
            {"id": o.request.id, "prompt": o.request.prompt, "seed": o.request.seed, "reason": o.failure}
            for o in outcomes
            if o.failure
        ],
    }
    text = json.dumps(report, indent=2, ensure_ascii=False, default=str)
    write_whole(output / "run.json", lambda temp: temp.write_text(text, encoding="utf-8"))
    done = [(output / o.line["file"], f"{o.request.prompt} #{o.request.seed}") for o in outcomes if o.line]
    contact_sheet(output / "contact-sheet.png", done)


def summary(config: RunConfig, outcomes: Sequence[Outcome], world: World, seconds: dict[str, float]) -> str:
    done = sum(outcome.line is not None for outcome in outcomes)
    each = seconds["generate"] / max(1, len(outcomes))
    lines = [
        f"{done} of {len(outcomes)} made on {world.size} rank(s) in {seconds['generate']:.1f} s "
        f"({each:.2f} s each), loaded in {seconds['load']:.1f} s -> {config.job.output}"
    ]
    for outcome in outcomes:
        if outcome.failure:
            reason = outcome.failure.splitlines()[0]
            lines.append(f"failed: {str(outcome.request.prompt)[:60]!r} seed {outcome.request.seed}: {reason}")
    return "\n".join(lines)
