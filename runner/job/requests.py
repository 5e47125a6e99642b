"""Prompts become requests, and those that earlier runs have settled are told from those that are left."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from runner.config import JobConfig
from runner.errors import UserError
from runner.inputs.arguments import Arguments
from runner.inputs.checked import checked
from runner.inputs.input_file import identity
from runner.inputs.named import named
from runner.job.prompts import COMMENT, Prompt, read_prompts
from runner.job.results import Failed, Made, Settled
from runner.media.output_type import output_type
from runner.output.lines import Failure
from runner.output.manifest import State, free_stems
from runner.output.write import slug
from runner.pipeline.pipeline import Pipeline
from runner.reading.plain_yaml import NotYaml, read_exactly
from runner.reading.values import check_seeds, shown
from runner.request import Request
from weights.agreement import Group, on_all_ranks


def read_job(job: JobConfig) -> list[Prompt]:
    """The prompts of the file `job.prompts`, which comes before a recipe's `job.prompt`, else those of `job.prompt`.

    Raises UserError when there are none, or one is no text (or class label).
    """
    if job.prompts is not None:
        return read_prompts(Path(job.prompts))
    if job.prompt is None and job.call:
        return [Prompt(None)]  # made of its inputs, where the pipeline can
    prompts = job.prompt if isinstance(job.prompt, list) else [] if job.prompt is None else [job.prompt]
    if not prompts:
        raise UserError('nothing to make: set job.prompt="a rocket", or job.prompts=FILE')
    for prompt in prompts:
        if not isinstance(prompt, str | int) or isinstance(prompt, bool):
            raise UserError(f"job.prompt: {prompt!r} is not text (or a class label); quote it")
    return [Prompt(prompt) for prompt in prompts]


def with_inputs(
    prompts: Sequence[Prompt], job: JobConfig, arguments: Arguments, group: Group
) -> tuple[list[Prompt], Mapping[str, Any]]:
    """The prompts and the job's call with every file that they name looked at, and what they are checked against the
    pipeline's arguments. Nothing is loaded for it. Collective over `group`.

    Paths are relative to the prompt file where they stand in one, else to the working folder. Each prompt's call is
    then the whole of it. Raises UserError, saying where.
    """

    def read() -> list[Mapping[str, Any]]:
        arguments.check(job.call)
        calls = [_named(job.call, arguments, "job.call.", Path())]
        base = Path() if job.prompts is None else Path(job.prompts).parent
        for number, prompt in enumerate(prompts, 1):
            where = prompt.where or f"prompt {number}"
            arguments.check(prompt.call, f"{where}: ", f"; named {COMMENT}..., a column or field is left out")
            call = _unfolded(prompt.call, arguments, f"{where}: ") if prompt.is_cells else prompt.call
            calls.append(_named(call, arguments, f"{where}: ", base))
        return calls

    common, *own = checked(on_all_ranks(read, group), group)
    whole = [replace(prompt, call={**common, **call}) for prompt, call in zip(prompts, own, strict=True)]
    for number, prompt in enumerate(whole, 1):
        arguments.check_prompt(prompt.text, prompt.call, prompt.where or f"prompt {number}")
    return whole, common


def _named(call: Mapping[str, Any], arguments: Arguments, where: str, base: Path) -> Mapping[str, Any]:
    return {name: named(value, arguments.takes[name], f"{where}{name}", base, name) for name, value in call.items()}


def _unfolded(cells: Mapping[str, Any], arguments: Arguments, where: str) -> Mapping[str, Any]:
    """A table's cell in brackets, for an argument that takes no text, is the list or mapping that it looks like."""

    def value(name: str, cell: Any) -> Any:
        if arguments.takes[name].may_be_text or not isinstance(cell, str) or cell[0] + cell[-1] not in ("[]", "{}"):
            return cell
        try:
            return read_exactly(cell)
        except NotYaml as error:
            raise UserError(f"{where}{name}: cannot read {shown(cell)} ({error}); quote each text in it") from error

    return {name: value(name, cell) for name, cell in cells.items()}


def requests_of(
    prompts: Sequence[Prompt], job: JobConfig, pipeline: Pipeline, recipe: Mapping[str, Any]
) -> list[Request]:
    """Every request of the job, in order.

    `recipe` is what decides the pixels of all of them: the weights' identity and the dtype.
    """
    requests: dict[str, Request] = {}
    asked = output_type(type(pipeline.stock), job.format)
    for position, prompt in enumerate(prompts):
        where = prompt.where or f"prompt {position + 1}"
        call = {**job.call, **prompt.call}
        pipeline.check_sound(call, where)
        lora = pipeline.adapters.choose(prompt.lora, where, call)
        decides = {**recipe, "prompt": prompt.text, "call": identity(call), "format": job.format.value}
        decides |= pipeline.adapters.identity(lora)
        first = job.seed if prompt.seed is None else prompt.seed
        check_seeds(first, job.images_per_prompt, f"{where}: seed")
        for seed in range(first, first + job.images_per_prompt):
            text = json.dumps({**decides, "seed": seed}, sort_keys=True, default=str)
            id = hashlib.sha256(text.encode()).hexdigest()[:16]
            number = position * job.images_per_prompt + seed - first
            request = Request(prompt.text, seed, call, lora, asked, id, number)
            # A request that is asked for twice is the same picture: made once, under its first number.
            requests.setdefault(id, replace(request, stem=f"{number:04d}-{slug(request.title)}-{seed}"))
    return list(requests.values())


def settle(requests: Sequence[Request], state: State, max_attempts: int) -> tuple[list[Settled], list[Request]]:
    """What earlier runs have settled (finished, or given up after `max_attempts` tries), and what is left to make.

    What was tried before and did not finish comes last: should it end the job again, the others are made by then.
    """
    settled: list[Settled] = []
    left = []
    stems = free_stems([(request.id, request.stem) for request in requests], state.finished)
    for request, stem in zip(requests, stems, strict=True):
        attempts = state.attempts.get(request.id, 0)
        if request.id in state.finished:
            settled.append(Made(request, state.finished[request.id], earlier=True))
        elif attempts >= max_attempts:
            failure = state.failures.get(request.id) or Failure.without_a_word(request, attempts)
            settled.append(Failed(request, failure, earlier=True))
        else:
            left.append(replace(request, stem=stem))
    return settled, sorted(left, key=lambda request: state.attempts.get(request.id, 0))
