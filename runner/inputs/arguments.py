"""The arguments of a pipeline's call, known from its class before anything is loaded."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from runner.errors import UserError
from runner.inputs.input_file import files_in
from runner.inputs.takes import Takes, annotations_of, takes

# The runner sets these for each request.
OWN_ARGUMENTS = {
    "generator": "job.seed",
    "output_type": "job.format",
    "num_images_per_prompt": "job.images_per_prompt",
    "num_videos_per_prompt": "job.images_per_prompt",
    "num_waveforms_per_prompt": "job.images_per_prompt",
    "num_designs_per_prompt": "job.images_per_prompt",
    "return_dict": None,
    "prompt": "job.prompt",
    "class_labels": "job.prompt",
}


@dataclass(frozen=True)
class Arguments:
    """What each argument takes, and which have to be given. `owner` is the class that they are of, for messages.
    `refused` says why a whole call cannot be, None where it can: what some pipelines need depends on what is given."""

    owner: str
    takes: Mapping[str, Takes]
    required: frozenset[str] = frozenset()
    refused: Callable[[Mapping[str, Any]], str | None] | None = None

    @property
    def prompt(self) -> str | None:
        """The argument for job.prompt: text, or class labels; None where a pipeline takes neither."""
        return next((name for name in ("prompt", "class_labels") if name in self.takes), None)

    def of_prompt(self, prompt: str | int | None) -> dict[str, Any]:
        """The argument for one prompt: text as text, since some pipelines refuse a list; a label in a list."""
        if prompt is None or self.prompt is None:
            return {}
        return {self.prompt: prompt if isinstance(prompt, str) else [prompt]}

    def check(self, call: Mapping[str, Any], where: str = "job.call.", advice: str = "") -> None:
        """Raises UserError for what the pipeline's own signature does not take, or what the runner sets.

        `where` stands before an argument's name; `advice` says what else can be done about one that is not taken.
        """
        for name in call:
            if name in OWN_ARGUMENTS:
                instead = OWN_ARGUMENTS[name]
                raise UserError(
                    f"{where}{name} is set by the runner" + (f"; use {instead}" if instead else "; leave it out")
                )
            if "ip_adapter_image" in name:
                raise UserError(
                    f"{where}{name} is for an IP adapter, and the runner loads none: its weights would join a "
                    "transformer that is placed already; leave it out"
                )
            if name not in self.takes:
                near = difflib.get_close_matches(name, list(self.takes), n=1, cutoff=0.0)[0]
                raise UserError(f"{where}{name} is no argument of {self.owner}; the nearest is {near!r}{advice}")

    def check_prompt(self, prompt: str | int | None, call: Mapping[str, Any], where: str) -> None:
        """Text for a pipeline that takes a prompt, a whole number for one that takes class labels, neither for one that
        takes neither, or has its inputs in the `call` instead."""
        if prompt is None:
            self._check_without(call, where)
        elif self.prompt is None:
            others = ", ".join(f"job.call.{name}" for name in self.takes if name.endswith("prompt")) or "none"
            raise UserError(f"{where}: {self.owner} takes no prompt; its arguments for text: {others}")
        elif self.prompt == "prompt" and not isinstance(prompt, str):
            text = f"""on the command line, the text is job.prompt='"{prompt}"'"""
            raise UserError(f"{where}: {self.owner} takes text, not the label {prompt}; {text}")
        elif self.prompt != "prompt" and not isinstance(prompt, int):
            raise UserError(f"{where}: {self.owner} takes a class label (a number), not {prompt!r}")
        if missing := [name for name in self.required if name not in call and name != self.prompt]:
            raise UserError(
                f"{where}: {self.owner} needs {missing[0]}; set job.call.{missing[0]}, or the field {missing[0]!r} of "
                "each line of job.prompts"
            )
        if self.refused is not None and (why := self.refused({**call, **self.of_prompt(prompt)})) is not None:
            raise UserError(f"{where}: {why}")

    def _check_without(self, call: Mapping[str, Any], where: str) -> None:
        if self.prompt is None or (self.prompt not in self.required and files_in(call)):
            return
        instead = "" if self.prompt in self.required else f", or {self.owner} inputs from files to make something of"
        raise UserError(f"{where}: no prompt; give '{self.prompt}' a value{instead}")


def arguments_of(pipeline: type) -> Arguments:
    """Of a pipeline's class. What it takes beside (**kwargs) is not known, and not taken."""
    call: Any = pipeline.__call__
    annotations = annotations_of(call)
    named = [
        parameter
        for name, parameter in inspect.signature(call).parameters.items()
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) and name != "self"
    ]
    required = frozenset(parameter.name for parameter in named if parameter.default is parameter.empty)
    taken = {one.name: takes(annotations[one.name]) for one in named}
    return Arguments(pipeline.__name__, taken, required, getattr(pipeline, "refused", None))
