"""Opens a diffusers directory and calls its own, unmodified pipeline."""

import difflib
import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch

from runner.calls.boundary import Timings, boundaries
from runner.calls.lockstep import Lockstep
from runner.components.component import Component, components_of
from runner.components.load import Loading
from runner.components.resolver import Decision, ExecutionMode, enter, resolve
from runner.config import Leave, LoraConfig
from runner.errors import UserError
from runner.pipeline.adapters import Adapters
from runner.world import World

NO_ADAPTERS: Mapping[str, float] = MappingProxyType({})
# The runner sets these for each request.
OWN_ARGUMENTS = {
    "generator": "job.seed",
    "output_type": "job.format",
    "num_images_per_prompt": "job.images_per_prompt",
    "num_videos_per_prompt": "job.images_per_prompt",
    "return_dict": None,
    "prompt": "job.prompt",
    "class_labels": "job.prompt",
}


class Pipeline:
    """A stock pipeline whose components are placed, and whose calls run each component in the mode decided for it."""

    def __init__(
        self, stock: Any, world: World, leave: Leave = Leave.component, loadings: Mapping[str, Loading] | None = None
    ) -> None:
        self.stock = stock
        self.world = world
        self.loadings = dict(loadings or {})
        self.timings = Timings()
        self.adapters = Adapters(LoraConfig(), {}, {})
        self.components: list[Component] = components_of(stock)
        self.decisions: dict[str, Decision] = resolve(self.components, leave)
        self.lockstep = Lockstep(world if any(component.is_sharded for component in self.components) else None)
        self.arguments = _arguments(type(stock))
        self.prompt_argument = "prompt" if "prompt" in self.arguments else self.arguments[0]

    def check_arguments(self, call: Mapping[str, Any], where: str = "job.call.", advice: str = "") -> None:
        """Refuse what the pipeline's own signature does not take, or what the runner sets."""
        check_arguments(type(self.stock), call, where, advice)

    def check_prompt(self, prompt: str | int, where: str) -> None:
        """Text for a pipeline that takes a prompt, a whole number for one that takes class labels."""
        if self.prompt_argument == "prompt" and not isinstance(prompt, str):
            text = f"""on the command line, the text is job.prompt='"{prompt}"'"""
            raise UserError(f"{where}: {type(self.stock).__name__} takes text, not the label {prompt}; {text}")
        if self.prompt_argument != "prompt" and not isinstance(prompt, int):
            raise UserError(f"{where}: {type(self.stock).__name__} takes a class label (a number), not {prompt!r}")

    def __call__(
        self,
        prompt: str | int,
        seed: int,
        call: Mapping[str, Any],
        output_type: str,
        lora: Mapping[str, float] = NO_ADAPTERS,
    ) -> Any:
        """One picture or clip: the first element of the pipeline's first output, with the adapters of `lora` active.

        The noise comes from a CPU generator of the request's own, so that no other request, rank or device moves it.
        Where a component is sharded, all ranks call together, with calls that are alike; PeerLeft is raised on those
        whose request could not go on because another rank's failed.
        """
        self.timings.current = None  # a failure before the first component call is not the last request's
        device_type = self.world.device.type
        with (
            self.lockstep.request(),
            enter(ExecutionMode.INFERENCE, device_type),
            boundaries(self.components, self.decisions, device_type, self.timings, self.lockstep),
        ):
            self.adapters.set(lora)
            output = self.stock(
                **{self.prompt_argument: [prompt]},
                **call,
                generator=torch.Generator("cpu").manual_seed(seed),
                output_type=output_type,
            )
        return output[0][0]


def check_arguments(cls: type, call: Mapping[str, Any], where: str = "job.call.", advice: str = "") -> None:
    """Raises UserError for what the pipeline class's own signature does not take, or what the runner sets.

    `where` stands before an argument's name; `advice` says what else can be done about one that is not taken.
    """
    arguments = _arguments(cls)
    for name in call:
        if name in OWN_ARGUMENTS:
            instead = OWN_ARGUMENTS[name]
            raise UserError(
                f"{where}{name} is set by the runner" + (f"; use {instead}" if instead else "; leave it out")
            )
        if name not in arguments:
            near = difflib.get_close_matches(name, arguments, n=1, cutoff=0.0)[0]
            raise UserError(f"{where}{name} is no argument of {cls.__name__}; the nearest is {near!r}{advice}")


def _arguments(cls: Any) -> list[str]:
    parameters = inspect.signature(cls.__call__).parameters
    return [name for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD and name != "self"]
