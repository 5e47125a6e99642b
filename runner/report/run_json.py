"""run.json at the end of a run: configuration, placement and mode of each component, figures, failures."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from runner.config import RunConfig, to_dict
from runner.errors import ExitCode
from runner.job.results import Failed, Made, Settled
from runner.numerics import flags, made_on, versions
from runner.pipeline.pipeline import Pipeline
from runner.report import teams
from runner.report.memory import OwnMemory, memory_of, on_nodes
from runner.report.side_by_side import rounds_of
from runner.trace.figures import where


@dataclass(frozen=True)
class Ending:
    """How the run ended, as its run.json and its exit code say."""

    code: ExitCode
    settled: Sequence[Settled]
    left: int  # requests neither made nor failed
    stopped: str | None  # by what, when it was asked to stop with work left
    seconds: Mapping[str, float]  # of loading, of generating

    @classmethod
    def of(
        cls, settled: Sequence[Settled], num_requests: int, stop_reason: str | None, seconds: Mapping[str, float]
    ) -> "Ending":
        left = num_requests - len(settled)
        if left:
            return cls(ExitCode.STOPPED, settled, left, stop_reason, seconds)
        failed = any(isinstance(result, Failed) for result in settled)
        return cls(ExitCode.FAILED if failed else ExitCode.DONE, settled, 0, None, seconds)

    @property
    def made(self) -> list[Made]:
        return [result for result in self.settled if isinstance(result, Made)]

    @property
    def failed(self) -> list[Failed]:
        return [result for result in self.settled if isinstance(result, Failed)]


def measure(pipeline: Pipeline, memory: OwnMemory, seconds: float) -> dict[str, Any]:
    """This rank's figures: seconds and calls by stage, where the time of making (`seconds` in all) went, memory at the
    peak, and what it computed on."""
    device, recorder = pipeline.world.device, pipeline.recorder
    stages = recorder.stages()
    figures: dict[str, Any] = {
        "seconds_per_stage": {stage: round(of.seconds, 4) for stage, of in stages.items()},
        "time": where(recorder.sums, seconds).to_json(recorder.steps),
        "calls_per_stage": {stage: of.times for stage, of in stages.items()},
        **memory_of(pipeline.components, device, memory),
        "made_on": made_on(device),
    }
    if pipeline.replay is not None:
        figures["call_log"] = {name: round(value, 3) for name, value in asdict(pipeline.replay.kept).items()}
    return figures


def facts(config: RunConfig, pipeline: Pipeline, plan: Mapping[str, Any] | None) -> dict[str, Any]:
    """What is known when the model is loaded, and holds however the run ends. `plan`: what was to be taken."""
    return {
        "config": to_dict(config),
        "versions": {"python": platform.python_version(), **versions()},
        "numerics": flags(),
        "allocator": os.environ.get("PYTORCH_ALLOC_CONF", ""),
        "world_size": pipeline.world.size,
        "device": str(pipeline.world.device),
        "plan": plan,
        "components": {component.name: _component(component.name, pipeline) for component in pipeline.components},
    }


def run_json(pipeline: Pipeline, ending: Ending, ranks: Sequence[Mapping[str, Any]]) -> Any:
    """What the end adds to the facts; `ranks` are the figures that each rank measured."""
    return {
        "state": ending.code.name.lower(),
        "exit_code": ending.code,
        "stopped": ending.stopped,
        "group": pipeline.group,
        "team": teams.described(pipeline),
        "parity": [asdict(parity) for parity in pipeline.parities],
        "rounds": rounds_of(pipeline),
        "seconds": {name: round(value, 3) for name, value in ending.seconds.items()},
        "ranks": [{name: value for name, value in rank.items() if name != "node"} for rank in ranks],
        "nodes": on_nodes(ranks),
        "finished": len(ending.made),
        "finished_before": sum(result.earlier for result in ending.made),
        "left": ending.left,
        "failures": [
            {
                "id": result.request.id,
                "prompt": result.request.prompt,
                "seed": result.request.seed,
                "reason": result.failure.reason,
            }
            for result in ending.failed
        ],
    }


def _component(name: str, pipeline: Pipeline) -> dict[str, Any]:
    component = next(one for one in pipeline.components if one.name == name)
    placement, decision = component.placement, pipeline.decisions[name]
    return {
        "class": type(component.module).__name__,
        "stage": component.stage,
        "bytes": component.num_bytes,
        "placement": str(placement),
        "devices": placement.devices,
        "context": component.context,
        "loading": asdict(pipeline.loadings[name]),
        "mode": decision.mode.value,
        "reason": decision.reason,
    }
