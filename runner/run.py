"""The main job, from a configuration to pictures on disk."""

import gc
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import diffusers
import transformers

from runner.components.context_fit import unproven
from runner.components.directory import Directory, check_placements, directory_of
from runner.components.identity import agreed_identity
from runner.config import AUTO, OPS, JobConfig, RunConfig
from runner.errors import ExitCode, UserError
from runner.health.last_line import LastLine
from runner.health.stderr import say
from runner.health.stop import StopFile
from runner.health.watch import Limits, Watch, watching
from runner.inputs.arguments import arguments_of
from runner.job.first_request import first_request, given
from runner.job.job import run_job
from runner.job.prompts import Prompt
from runner.job.requests import read_job, requests_of, settle, with_inputs
from runner.job.results import extent_of
from runner.job.teams import in_teams
from runner.media.save import settled_writing
from runner.media.sheet import contact_sheet
from runner.numerics import settle_numerics
from runner.output.job_folder import JobFolder, settle_recipe, taken
from runner.output.recipe import recipe_of
from runner.output.write import read_json
from runner.parity.certificate import certify
from runner.pipeline.adapters import recipe_of_lora
from runner.pipeline.open import open_pipeline
from runner.pipeline.pipeline import Pipeline
from runner.plan.check import settle_plan
from runner.progress import Progress
from runner.report.explain import table
from runner.report.live.line import Line
from runner.report.live.page import LivePage
from runner.report.live.pulse import Reader, Teller, pulse
from runner.report.live.samples import Samples
from runner.report.live.status import StatusFile
from runner.report.memory import OwnMemory, own_memory
from runner.report.page.page import write_report
from runner.report.run_json import Ending, facts, measure, run_json
from runner.report.side_by_side import wasted
from runner.report.summary import summary
from runner.report.trace_files import traced
from runner.request import Request, parse_part
from runner.world import World

T = TypeVar("T")


def run(config: RunConfig, world: World, verify: int = 0) -> int:
    """Make the job on the ranks of `world`, and `verify` of its requests again. Returns the exit code."""
    with _watched(config, world) as watch:
        world.agreed(lambda: settle_numerics(world.device, config.execution.tf32))
        prompts = world.agreed(lambda: read_job(config.job))
        directory = world.agreed(lambda: directory_of(config))
        _note_left_out(directory, world)
        # Before the folder is looked at, where a misspelt argument would be another recipe.
        arguments = world.agreed(lambda: arguments_of(directory.pipeline))
        prompts, call = with_inputs(prompts, config.job, arguments, world.control)
        config, world = in_teams(config, world, directory, prompts)
        number = len(prompts) * config.job.images_per_prompt
        config = replace(config, job=world.agreed(lambda: settled_writing(directory.pipeline, config.job)))
        world.agreed(lambda: check_placements(directory, config))
        config, plan = settle_plan(config, directory, world, lambda: given(prompts[0], arguments), number)
        weights = agreed_identity(directory, config, world)
        adapters = world.agreed(lambda: recipe_of_lora(config.lora))
        with taken(config.job, recipe_of(config, weights, call) | adapters, world) as folder:
            watch.last_line.run_file = folder.run_file
            watch.stop_file.path = watch.stop_file.path or folder.files.stop
            config = replace(config, job=replace(config.job, output=str(folder.files.path)))
            with own_memory() as memory:
                ending = _run_in_folder(config, world, directory, prompts, weights, folder, watch, memory, plan, verify)
            if verify and not ending.left:
                return _verified(ending, verify, config, world, directory, folder, watch)
            return ending.code


@contextmanager
def _watched(config: RunConfig, world: World) -> Iterator[Watch]:
    """From the start on: what is read and loaded may come from a file system that hangs, on any rank."""
    _quiet_libraries()
    job, progress = config.job, Progress(world.rank)
    limits = Limits(job.timeout_seconds, job.grace_seconds)
    stop_file = StopFile(Path(job.stop_file) if job.stop_file else None)
    with watching(world, progress, LastLine(progress), limits, stop_file) as watch:
        yield watch


def _run_in_folder(
    config: RunConfig,
    world: World,
    directory: Directory,
    prompts: Sequence[Prompt],
    weights: dict[str, Any],
    folder: JobFolder,
    watch: Watch,
    memory: OwnMemory,
    plan: Mapping[str, Any] | None,
    verify: int,
) -> Ending:
    start, progress = perf_counter(), watch.progress
    if world.rank == 0:
        for note in folder.state.notes:
            say(f"{folder.files.path}: {note}")
    progress.doing("load")
    with _telling(config.job, folder, watch, world):
        pipeline = open_pipeline(config, world, directory, progress=progress, show_bar=_shows_bar(world))
        folder.run_file.facts = facts(config, pipeline, plan)
        part = parse_part(config.job.part)
        requests = world.agreed(lambda: part.of(requests_of(prompts, config.job, pipeline, weights)))
        world.check_same([request.id for request in requests], "the job (prompts, recipe or weights)")
        settled, left = settle(requests, folder.state, config.job.max_attempts)
        progress.extent = extent_of(settled, len(requests))
        if world.rank == 0:
            settle_recipe(folder)
        _prove(pipeline, (left or requests if verify else left)[:1], is_asked=verify > 0)
        pipeline.recorder.forget()
        loaded = perf_counter()
        with _traced(pipeline, config.job, folder, world):
            made = run_job(left, pipeline, config.job, world, folder=folder, watch=watch)
    progress.doing("report")
    everything = sorted([*settled, *made], key=lambda result: result.request.number)
    pipeline.recorder.settle()
    seconds = {"load": loaded - start, "generate": perf_counter() - loaded}
    ending = Ending.of(everything, len(requests), watch.stop_reason, seconds)
    ranks = world.gather(measure(pipeline, memory, seconds["generate"]))
    if world.rank == 0:
        _report(config, pipeline, ending, folder, ranks)
    return ending


def _verified(
    ending: Ending,
    number: int,
    config: RunConfig,
    world: World,
    directory: Directory,
    folder: JobFolder,
    watch: Watch,
) -> ExitCode:
    """The job's exit code, or that of a certificate that does not hold. Rank 0 makes it, when no rank has weights any
    more: the pipeline's hooks lead round to it, so that only the collector of cycles lets go of it."""
    gc.collect()
    watch.progress.doing("verify")
    world.gather(None)  # every rank has let go of its weights
    code = ending.code
    if world.rank == 0:
        made = [(one.request, one.line) for one in ending.made]
        certificate = _best_effort(
            "the certificate of --verify",
            lambda: certify(made, number, config, directory, world.device, lambda: watch.stop_reason is not None),
        )
        if certificate is not None:
            say(str(certificate))
        code = code if certificate is not None and certificate.holds else ExitCode.DIFFERS
        told = {"verified": certificate and certificate.to_json(), "state": code.name.lower(), "exit_code": code}
        _best_effort("run.json", lambda: folder.run_file.write(read_json(folder.files.run_json) | told))
        if config.job.report:
            _best_effort(folder.files.report.name, lambda: write_report(folder.files))
    return world.from_rank_0(code)


@contextmanager
def _telling(job: JobConfig, folder: JobFolder, watch: Watch, world: World) -> Iterator[None]:
    """On rank 0, while the job runs: status.json, samples, a line for the terminal or the log, and the page."""
    files = folder.files
    if job.report:
        watch.last_line.page = lambda: _best_effort(files.report.name, lambda: write_report(files))
    if world.rank != 0:
        yield
        return
    line = Line()
    tellers: list[Teller] = [StatusFile(files), Samples(files), line, *([LivePage(files)] if job.report else [])]
    try:
        with pulse(Reader(watch, folder.run_file.holder.run), tellers):
            yield
    finally:
        line.clear()


def _report(
    config: RunConfig, pipeline: Pipeline, ending: Ending, folder: JobFolder, ranks: Sequence[dict[str, Any]]
) -> None:
    """What is made is made: whatever goes wrong from here on is said, and does not make the job fail."""
    shown = [
        ([folder.files.path / file.file for file in made.line.all_files], f"{made.request.title} #{made.request.seed}")
        for made in ending.made
    ]
    _best_effort("run.json", lambda: folder.run_file.write(run_json(pipeline, ending, ranks)))
    _best_effort("the contact sheet", lambda: contact_sheet(folder.files.contact_sheet, shown))
    if config.job.report:
        _best_effort(folder.files.report.name, lambda: write_report(folder.files))
    if (warning := wasted(pipeline)) is not None:
        say(warning)
    say(summary(config, pipeline.world, ending, ranks))


def _best_effort(what: str, make: Callable[[], T]) -> T | None:
    try:
        return make()
    except Exception as error:  # of any kind: a consumer may have moved, damaged or replaced any file
        say(f"could not write {what}: {type(error).__name__}: {error}")
        return None


def _note_left_out(directory: Directory, world: World) -> None:
    if directory.left_out and world.rank == 0:
        names = ", ".join(directory.left_out)
        say(f"{directory.root}: left out, since a {directory.pipeline.__name__} does not take it: {names}")


def _prompts_that_decide(config: RunConfig) -> list[Prompt]:
    """Where they decide how ranks form teams; of a job that may have none yet, which is taken for one picture."""
    job, mesh = config.job, config.mesh
    decide = AUTO in (mesh.guidance, mesh.context) and (job.prompts is not None or job.prompt is not None)
    return read_job(job) if decide else [Prompt(None)]


def explain(config: RunConfig, world: World) -> int:
    """Load and place as `run` would, and print what the resolver decided; nothing is generated."""
    with _watched(config, world) as watch:
        world.agreed(lambda: settle_numerics(world.device, config.execution.tf32))
        directory = world.agreed(lambda: directory_of(config))
        config, world = in_teams(config, world, directory, world.agreed(lambda: _prompts_that_decide(config)))
        world.agreed(lambda: check_placements(directory, config))
        config, _ = settle_plan(config, directory, world, lambda: first_request(config.job, directory.pipeline))
        watch.progress.doing("load")
        pipeline = open_pipeline(config, world, directory, progress=watch.progress, show_bar=_shows_bar(world))
        if world.rank == 0:
            print(table(pipeline), flush=True)
    return ExitCode.DONE


def _traced(pipeline: Pipeline, job: JobConfig, folder: JobFolder, world: World) -> AbstractContextManager[None]:
    if not job.profile:
        return nullcontext()
    return traced(pipeline, folder.files, world, with_ops=job.profile == OPS)


def _prove(pipeline: Pipeline, requests: Sequence[Request], *, is_asked: bool) -> None:
    """Before anything is made: a call, of the first request, of each component that shares out tokens by a plan that no
    test has proven, or of all of them. Raises UserError where it does not hold."""
    names = [one.name for one in pipeline.components if one.context > 1] if is_asked else unproven(pipeline.components)
    for request in requests if names else ():
        pipeline.parities = pipeline.compare(names, request)
    for parity in pipeline.parities:
        if not parity.holds:
            raise UserError(f"mesh.context={parity.ranks}: {parity}; use mesh.context=1")
        if pipeline.world.rank == 0:
            say(str(parity))


def _shows_bar(world: World) -> bool:
    return world.rank == 0 and sys.stderr.isatty()


def _quiet_libraries() -> None:
    """Their bars are one for each component and rank; ours is one for the run."""
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
