"""A job: prompts become requests, requests become waves over the ranks, finished requests become manifest lines."""

import hashlib
import json
import socket
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from runner.calls.finite import require_finite
from runner.calls.lockstep import OutOfStep, PeerLeft
from runner.config import Format, JobConfig
from runner.errors import UserError
from runner.health.fault import ends_the_job
from runner.health.watch import Watch
from runner.job.prompts import Prompt, read_prompts
from runner.job.waves import Waves
from runner.media.image import save_array, save_picture
from runner.media.pixels import pixel_hash, pixels
from runner.media.video import save_video
from runner.output.job_folder import Folder
from runner.output.manifest import IMAGES, State, file_facts, free_stems
from runner.output.write import slug
from runner.pipeline.pipeline import Pipeline
from runner.world import World


@dataclass(frozen=True)
class Request:
    """One picture or clip to make. `id` is a hash of everything that decides its pixels."""

    id: str
    number: int
    prompt: str | int
    seed: int
    call: Mapping[str, Any]
    stem: str
    lora: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What became of a request: a manifest line, or the reason why there is none."""

    request: Request
    line: Mapping[str, Any] | None = None
    failure: Mapping[str, Any] | None = None  # a line of failures.jsonl
    again: PeerLeft | None = None  # not to blame: another rank's request ended the wave
    earlier: bool = False  # settled before this run

    @property
    def reason(self) -> str | None:
        """The failure in one line."""
        if self.failure is None:
            return None
        return "{stage}/{component}: {error}: {message}".format_map(self.failure)


def read_job(job: JobConfig) -> list[Prompt]:
    """The prompts of the file `job.prompts`, which comes before a recipe's `job.prompt`, else those of `job.prompt`.

    Raises UserError when there are none, or one is no text (or class label).
    """
    if job.prompts is not None:
        return read_prompts(Path(job.prompts))
    prompts = job.prompt if isinstance(job.prompt, list) else [] if job.prompt is None else [job.prompt]
    if not prompts:
        raise UserError('nothing to make: set job.prompt="a rocket", or job.prompts=FILE')
    for prompt in prompts:
        if not isinstance(prompt, str | int) or isinstance(prompt, bool):
            raise UserError(f"job.prompt: {prompt!r} is not text (or a class label); quote it")
    return [Prompt(prompt) for prompt in prompts]


def plan(prompts: Sequence[Prompt], job: JobConfig, pipeline: Pipeline, recipe: Mapping[str, Any]) -> list[Request]:
    """Every request of the job, in order, checked against the pipeline's signature.

    `recipe` is what decides the pixels of all of them: the weights' identity and the dtype.
    """
    requests: dict[str, Request] = {}
    for position, prompt in enumerate(prompts):
        where = f"prompt {position + 1}"
        pipeline.check_prompt(prompt.text, where)
        pipeline.check_arguments(prompt.call, where)
        call = {**job.call, **prompt.call}
        lora = pipeline.adapters.choose(prompt.lora, where, call)
        first = job.seed if prompt.seed is None else prompt.seed
        for seed in range(first, first + job.images_per_prompt):
            decides = {**recipe, "prompt": prompt.text, "seed": seed, "call": call, "format": job.format.value}
            decides |= pipeline.adapters.identity(lora)
            digest = hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode()).hexdigest()
            number = position * job.images_per_prompt + seed - first
            stem = f"{number:04d}-{slug(prompt.text)}-{seed}"
            # A request that is asked for twice is the same picture: made once, under its first number.
            requests.setdefault(digest[:16], Request(digest[:16], number, prompt.text, seed, call, stem, lora))
    return list(requests.values())


def settle(requests: Sequence[Request], state: State, max_attempts: int) -> tuple[list[Outcome], list[Request]]:
    """What earlier runs have settled (finished, or given up after `max_attempts` tries), and what is left to make.

    What was tried before and did not finish comes last: should it end the job again, the others are made by then.
    """
    settled, left = [], []
    stems = free_stems([(request.id, request.stem) for request in requests], state.finished)
    for request, stem in zip(requests, stems, strict=True):
        if request.id in state.finished:
            settled.append(Outcome(request, line=state.finished[request.id], earlier=True))
        elif state.attempts.get(request.id, 0) >= max_attempts:
            given_up = state.failures.get(request.id) or _without_a_word(request, state.attempts[request.id])
            settled.append(Outcome(request, failure=given_up, earlier=True))
        else:
            left.append(replace(request, stem=stem))
    return settled, sorted(left, key=lambda request: state.attempts.get(request.id, 0))


def run_job(
    requests: Sequence[Request], pipeline: Pipeline, job: JobConfig, world: World, *, folder: Folder, watch: Watch
) -> list[Outcome]:
    """Make the requests: in each wave, each rank makes one. Rank 0 records them after each wave.

    Ends early, between two waves, when the job is asked to stop. Returns what was tried, on every rank.
    """
    outcomes: list[Outcome] = []
    waves = Waves(requests, world.size, lockstep=pipeline.lockstep.is_needed)
    bar = tqdm(total=len(requests), desc="generating", unit="picture", disable=world.rank != 0 or None)
    with bar:
        for wave in watch.until_stopped(waves):
            with watch.wave([request.id for request in wave]):
                folder.begin(watch.activity.wave)
                mine = _make_mine(wave, pipeline, job, watch)
                watch.waiting()
                made = [outcome for outcome in world.gather(mine) if outcome is not None]
                watch.doing("record")
                again = [outcome.request for outcome in made if outcome.again]
                folder.withdraw([request.id for request in again])
                folder.record([outcome.line for outcome in made], [outcome.failure for outcome in made])
            waves.again(again, alone=any(isinstance(outcome.again, OutOfStep) for outcome in made))
            done = [outcome for outcome in made if outcome.again is None]
            outcomes += done
            bar.update(len(done))
    return outcomes


def _make_mine(wave: Sequence[Request], pipeline: Pipeline, job: JobConfig, watch: Watch) -> Outcome | None:
    """This rank's request of the wave; where there is none but the ranks must stay in step, filler work."""
    rank = watch.activity.rank
    if rank < len(wave):
        outcome = _make(wave[rank], pipeline, job, watch)
        # Alone, a request has only its own repetitions beside it: out of step with itself, it is to blame.
        if len(wave) == 1 and outcome.again is not None:
            return Outcome(outcome.request, failure=_failure(outcome.request, pipeline, outcome.again))
        return outcome
    if pipeline.lockstep.is_needed:
        _make(wave[0], pipeline, job, watch, keep=False)
    else:
        _switch_along(wave[0], pipeline)
    return None


def _switch_along(request: Request, pipeline: Pipeline) -> None:
    """A rank that has no request switches adapters too: the ranks of a node may share the weights that are edited."""
    try:
        pipeline.adapters.set(request.lora)
    except Exception:
        return  # the same on the ranks that have requests, which record it


def _make(request: Request, pipeline: Pipeline, job: JobConfig, watch: Watch, *, keep: bool = True) -> Outcome:
    start = perf_counter()
    try:
        output_type = "np" if job.format is Format.npy else "pil"
        watch.making(f"{request.id} {str(request.prompt)[:60]!r}", pipeline.timings)
        made = pipeline(request.prompt, request.seed, request.call, output_type, request.lora)
        if not keep:
            return Outcome(request)
        saved = _save(made, request, job)
    except PeerLeft as error:
        return Outcome(request, again=error)
    except Exception as error:
        # Whatever a model raises for one request is recorded with its place, and must not cost the others.
        if ends_the_job(error):
            raise
        return Outcome(request, failure=_failure(request, pipeline, error))
    line = {**_named(request), **saved, "rank": watch.activity.rank, "seconds": round(perf_counter() - start, 3)}
    return Outcome(request, line=line)


def _named(request: Request) -> dict[str, Any]:
    named = {"id": request.id, "prompt": request.prompt, "seed": request.seed, "call": dict(request.call)}
    return named | ({"lora": dict(request.lora)} if request.lora else {})


def _failure(request: Request, pipeline: Pipeline, error: Exception) -> dict[str, Any]:
    stage, component = pipeline.timings.current or ("start", type(pipeline.stock).__name__)
    return {
        **_named(request),
        "stage": stage,
        "component": component,
        "error": type(error).__name__,
        "message": str(error),
        "traceback": "".join(traceback.format_exception(error)),
        "host": socket.gethostname(),
    }


def _without_a_word(request: Request, attempts: int) -> dict[str, Any]:
    message = f"the job ended each of the {attempts} times that this request was being made"
    place = {"stage": "unknown", "component": "unknown", "error": "Skipped", "message": message, "traceback": ""}
    return {**_named(request), **place, "attempts": attempts}


def _save(made: Any, request: Request, job: JobConfig) -> dict[str, Any]:
    """Write what the pipeline made. The file relative to the output folder, the hash of the raw pixels, its size."""
    folder = Path(job.output) / IMAGES
    array = pixels(made)
    if job.format is Format.npy:
        require_finite("pixels", torch.from_numpy(array))
        file = folder / f"{request.stem}.npy"
        save_array(file, array)
    elif isinstance(made, Image.Image):
        file = folder / f"{request.stem}.png"
        save_picture(file, made, _named(request))
    else:
        file = folder / f"{request.stem}.mp4"
        save_video(file, made, job.fps, _named(request))
    return {"file": str(file.relative_to(job.output)), "sha256": pixel_hash(array), **file_facts(file)}
