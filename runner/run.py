"""The main job, from a configuration to pictures on disk."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import diffusers
import torch
import transformers
from torch.profiler import ProfilerActivity, profile

from runner.components.directory import read_directory
from runner.components.identity import agreed_identity
from runner.config import RunConfig
from runner.health.last_line import LastWords
from runner.health.stop import StopFile
from runner.health.watch import Limits, Watch, watching
from runner.job.job import plan, read_job, run_job, settle
from runner.job.prompts import Prompt
from runner.output.job_folder import Folder, taken
from runner.output.recipe import recipe_of
from runner.output.write import write_whole
from runner.pipeline.adapters import recipe_of_lora
from runner.pipeline.open import open_pipeline
from runner.pipeline.pipeline import check_arguments
from runner.report.explain import table
from runner.report.run_json import Ending, write_report
from runner.report.summary import summary
from runner.request import parse_part
from runner.world import World


def run(config: RunConfig, world: World) -> int:
    """Make the job on the ranks of `world`. Returns the exit code (see ExitCode)."""
    _quiet_libraries()
    prompts = world.agreed(lambda: read_job(config.job))
    world.agreed(lambda: _check_call(config))
    weights = agreed_identity(config.model, world)
    adapters = world.agreed(lambda: recipe_of_lora(config.lora))
    with taken(config.job, recipe_of(config, weights) | adapters, world) as folder:
        job = replace(config.job, output=str(folder.path))
        words = LastWords(folder.run_file)
        limits = Limits(job.timeout_seconds, job.grace_seconds)
        stop_file = StopFile(Path(job.stop_file) if job.stop_file else folder.path / "stop")
        with watching(world, words, limits, stop_file) as watch:
            return _run_watched(replace(config, job=job), world, prompts, weights, folder, watch)


def _run_watched(
    config: RunConfig, world: World, prompts: list[Prompt], weights: dict[str, Any], folder: Folder, watch: Watch
) -> int:
    start = perf_counter()
    if world.rank == 0:
        for note in folder.state.notes:
            print(f"{folder.path}: {note}", file=sys.stderr)
    watch.doing("load")
    pipeline = open_pipeline(config, world, progress=world.rank == 0 and sys.stderr.isatty())
    requests = world.agreed(lambda: parse_part(config.job.part).of(plan(prompts, config.job, pipeline, weights)))
    world.check_same([request.id for request in requests], "the job (prompts, recipe or weights)")
    settled, left = settle(requests, folder.state, config.job.max_attempts)
    folder.open_books()
    loaded = perf_counter()
    with _profiled(config, world):
        made = run_job(left, pipeline, config.job, world, folder=folder, watch=watch)
    outcomes = sorted([*settled, *made], key=lambda outcome: outcome.request.number)
    seconds = {"load": loaded - start, "generate": perf_counter() - loaded}
    watch.doing("report")
    ending = Ending.of(outcomes, len(requests), watch.stop_reason)
    write_report(config, pipeline, outcomes, world, seconds, ending=ending, run_file=folder.run_file)
    if world.rank == 0:
        print(summary(config, outcomes, world, seconds, ending), file=sys.stderr)
    return ending.code


def _check_call(config: RunConfig) -> None:
    """Before the folder is looked at, where a misspelt argument would be another recipe. Refuses what is no model."""
    check_arguments(read_directory(Path(config.model.path)).pipeline, config.job.call)


def explain(config: RunConfig, world: World) -> int:
    """Load and place as `run` would, and print what the resolver decided; nothing is generated."""
    _quiet_libraries()
    pipeline = open_pipeline(config, world, progress=world.rank == 0 and sys.stderr.isatty())
    if world.rank == 0:
        print(table(pipeline))
    return 0


def _quiet_libraries() -> None:
    """Their bars are one for each component and rank; ours is one for the run."""
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


@contextmanager
def _profiled(config: RunConfig, world: World) -> Iterator[None]:
    """A Chrome trace of this rank under <output>/profile, where job.profile asks for one."""
    if not config.job.profile:
        yield
        return
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as trace:
        yield
    write_whole(
        Path(config.job.output) / "profile" / f"rank{world.rank}.json",
        lambda temp: trace.export_chrome_trace(str(temp)),
    )
