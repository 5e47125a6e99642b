"""A job: prompts become requests, requests become waves over the ranks, finished requests become manifest lines."""

import hashlib
import json
import os
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from PIL import Image
from tqdm import tqdm

from runner.config import Format, JobConfig
from runner.distributed import World
from runner.errors import UserError
from runner.outputs import pixel_hash, pixels, save_array, save_picture, save_video, slug
from runner.pipeline import Pipeline
from runner.prompts import Prompt, read_prompts


@dataclass(frozen=True)
class Request:
    """One picture or clip to make. `id` is a hash of everything that decides its pixels."""

    id: str
    number: int
    prompt: str | int
    seed: int
    call: Mapping[str, Any]
    stem: str


@dataclass(frozen=True)
class Outcome:
    """What became of a request: a manifest line, or the reason why there is none."""

    request: Request
    line: Mapping[str, Any] | None = None
    failure: str | None = None


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
    requests: list[Request] = []
    for prompt in prompts:
        where = f"prompt {len(requests) // job.images_per_prompt + 1}"
        pipeline.check_prompt(prompt.text, where)
        pipeline.check_arguments(prompt.call, where)
        call = {**job.call, **prompt.call}
        first = job.seed if prompt.seed is None else prompt.seed
        for seed in range(first, first + job.images_per_prompt):
            decides = {**recipe, "prompt": prompt.text, "seed": seed, "call": call, "format": job.format.value}
            digest = hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode()).hexdigest()
            stem = f"{len(requests):04d}-{slug(prompt.text)}-{seed}"
            requests.append(Request(digest[:16], len(requests), prompt.text, seed, call, stem))
    return requests


def run_job(requests: Sequence[Request], pipeline: Pipeline, job: JobConfig, world: World) -> list[Outcome]:
    """Make every request: in each wave, each rank makes one. Rank 0 writes the manifest after each wave.

    The manifest is new for each run, so it never names a picture that this run did not make. Returns all outcomes on
    every rank, in the requests' order.
    """
    output = Path(job.output)
    outcomes: list[Outcome] = []
    manifest = output / "manifest.jsonl"
    bar = tqdm(total=len(requests), desc="generating", unit="picture", disable=world.rank != 0 or None)
    with bar, _appending(manifest, world) as append:
        for wave in _waves(requests, world.size):
            mine = _make(wave[world.rank], pipeline, job, world.rank) if world.rank < len(wave) else None
            made = [outcome for outcome in world.gather(mine) if outcome is not None]
            outcomes += made
            append([outcome.line for outcome in made if outcome.line])
            bar.update(len(made))
    return outcomes


def _waves(requests: Sequence[Request], size: int) -> Iterator[Sequence[Request]]:
    for start in range(0, len(requests), size):
        yield requests[start : start + size]


class _appending:
    """Rank 0's open manifest. A line is flushed to the disk before the next wave begins."""

    def __init__(self, path: Path, world: World) -> None:
        self.stream = path.open("w", encoding="utf-8") if world.rank == 0 else None

    def __enter__(self) -> Any:
        return self.append

    def append(self, lines: Sequence[Mapping[str, Any] | None]) -> None:
        if self.stream is not None:
            self.stream.write("".join(json.dumps(line, ensure_ascii=False, default=str) + "\n" for line in lines))
            self.stream.flush()
            os.fsync(self.stream.fileno())

    def __exit__(self, *_: object) -> None:
        if self.stream is not None:
            self.stream.close()


def _make(request: Request, pipeline: Pipeline, job: JobConfig, rank: int) -> Outcome:
    start = perf_counter()
    try:
        output_type = "np" if job.format is Format.npy else "pil"
        made = pipeline(request.prompt, request.seed, request.call, output_type)
        file, digest = _save(made, request, job)
    except Exception as error:
        # Whatever a model raises for one request is recorded with its place, and must not cost the others.
        stage, component = pipeline.timings.current or ("start", type(pipeline.stock).__name__)
        tail = "".join(traceback.format_exception(error)[-3:])
        return Outcome(request, failure=f"{stage}/{component}: {type(error).__name__}: {error}\n{tail}")
    line = {
        "id": request.id,
        "prompt": request.prompt,
        "seed": request.seed,
        "call": dict(request.call),
        "file": file,
        "sha256": digest,
        "rank": rank,
        "seconds": round(perf_counter() - start, 3),
    }
    return Outcome(request, line=line)


def _save(made: Any, request: Request, job: JobConfig) -> tuple[str, str]:
    """Write what the pipeline made; the file relative to the output folder, and the hash of the raw pixels."""
    folder = Path(job.output) / "images"
    recipe = {"prompt": request.prompt, "seed": request.seed, "call": dict(request.call), "id": request.id}
    array = pixels(made)
    if job.format is Format.npy:
        file = folder / f"{request.stem}.npy"
        save_array(file, array)
    elif isinstance(made, Image.Image):
        file = folder / f"{request.stem}.png"
        save_picture(file, made, recipe)
    else:
        file = folder / f"{request.stem}.mp4"
        save_video(file, made, job.fps, recipe)
    return str(file.relative_to(job.output)), pixel_hash(array)
