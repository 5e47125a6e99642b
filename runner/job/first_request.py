"""The first request of a job as the arguments of its call: what a plan rehearses."""

from collections.abc import Mapping
from typing import Any

import torch

from runner.config import JobConfig
from runner.inputs.arguments import Arguments, arguments_of
from runner.inputs.decode import decoded
from runner.job.prompts import Prompt
from runner.job.requests import read_job, with_inputs

Given = tuple[Mapping[str, Any], Mapping[str, Any]]


def given(prompt: Prompt, arguments: Arguments) -> Given:
    """The arguments with their files read, and the prompt as one."""
    return decoded(prompt.call, torch.device("cpu")), arguments.of_prompt(prompt.text)


def first_request(job: JobConfig, pipeline: Any) -> Given:
    """Of a job that may not say what is to be made: then of a stand-in. Raises UserError."""
    arguments = arguments_of(pipeline)
    asked = job.prompt is not None or job.prompts is not None
    prompts = read_job(job)[:1] if asked else [Prompt("a stand-in" if arguments.prompt == "prompt" else 0)]
    (prompt,), _ = with_inputs(prompts, job, arguments, None)
    return given(prompt, arguments)
