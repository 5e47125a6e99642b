"""The main job, from a configuration to pictures on disk."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from time import perf_counter

import diffusers
import torch
import transformers
from torch.profiler import ProfilerActivity, profile

from runner.checkpoint import identity
from runner.config import RunConfig
from runner.distributed import World
from runner.errors import UserError
from runner.job import plan, read_job, run_job
from runner.outputs import write_whole
from runner.pipeline import open_pipeline
from runner.report import summary, write_report


def run(config: RunConfig, world: World) -> int:
    """Make the job on the ranks of `world`. Returns the exit code: 0 all made, 1 some failed."""
    # Their bars are one for each component and rank; ours is one for the run.
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    start = perf_counter()
    prompts = world.agreed(lambda: read_job(config.job))
    world.agreed(lambda: _check_world(config, world))
    pipeline = world.agreed(
        lambda: open_pipeline(config, world.device, progress=world.rank == 0 and sys.stderr.isatty())
    )
    world.agreed(lambda: pipeline.check_arguments(config.job.call))
    recipe = {"weights": identity(Path(config.model.path)), "dtype": config.model.dtype.value}
    requests = world.agreed(lambda: plan(prompts, config.job, pipeline, recipe))
    world.agreed(lambda: _make_output(Path(config.job.output)))
    loaded = perf_counter()
    with _profiled(config, world):
        outcomes = run_job(requests, pipeline, config.job, world)
    seconds = {"load": loaded - start, "generate": perf_counter() - loaded}
    write_report(config, pipeline, outcomes, world, seconds)
    if world.rank == 0:
        print(summary(config, outcomes, world, seconds), file=sys.stderr)
    return 1 if any(outcome.failure for outcome in outcomes) else 0


def _check_world(config: RunConfig, world: World) -> None:
    shard, replicate = config.mesh.shard or 1, config.mesh.replicate or world.size
    if shard != 1 or replicate != world.size:
        raise UserError(
            f"mesh.shard={config.mesh.shard}, mesh.replicate={config.mesh.replicate}: sharding is not built into "
            f"generate yet; on {world.size} rank(s) leave both out"
        )


def _make_output(output: Path) -> None:
    try:
        (output / "images").mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=output / "images"):
            pass
    except OSError as error:
        raise UserError(f"job.output: cannot write to {output}: {error.strerror or error}") from error


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
