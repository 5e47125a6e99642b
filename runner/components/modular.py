"""Modular pipelines of diffusers, each as a class that is used like the class of any other pipeline.

Diffusers puts such a pipeline together from blocks: steps that say which components they call, which inputs they take
and what they make of them. Some models exist only so. What the runner asks of a pipeline's class is made of the blocks
here: a constructor that takes the components, a call with a signature, the order of the components, outputs by name,
one progress bar. The API is experimental: this file and modular_index.py are all that knows it.
"""

import copy
import functools
import inspect
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import make_dataclass
from typing import Any

import diffusers
from diffusers.guiders import BaseGuidance
from diffusers.modular_pipelines.modular_pipeline_utils import INPUT_PARAM_TEMPLATES
from diffusers.utils import BaseOutput
from torch import nn
from tqdm import tqdm

from runner.components.reading import reading
from runner.errors import UserError
from runner.reading.schema import nearest

TRIED = ("0.42.1",)  # releases of diffusers that the tests ran with
_SCALARS = str | int | float | None
_RUNNING: ContextVar[Any] = ContextVar("_RUNNING", default=None)  # the pipeline whose call this context is in
_OF_EVERY_CALL = {"prompt", "generator", "output_type"}  # set by the runner


@contextmanager
def experimental(what: str) -> Iterator[None]:
    """Raise UserError, with the releases that were tried, for what diffusers raises inside."""
    tried = f"modular pipelines were tried with diffusers {' and '.join(TRIED)}, installed is {diffusers.__version__}"
    with reading(f"{what} ({tried})"):
        yield


def settings_of_made(cls: Any, name: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a component that the constructor makes, such as a guider, as it is to be given them: those that
    differ from what it would have. `class` names another guider, which takes what it knows of the configuration.

    Raises UserError for a setting that there is not, or a value that is not taken.
    """
    spec = cls.made[name]
    kind = _class_called(name, spec, wanted.get("class"))
    known = sorted(kind._get_init_keys(kind) - {"self", "kwargs"})
    for one in wanted:
        if one not in (*known, "class"):
            near = nearest(one, known)
            raise UserError(f"components.{name}.{one}: a {kind.__name__} has no such setting; the nearest is {near!r}")
    with experimental(f"components.{name}: a {kind.__name__} does not take these settings"):
        _made(spec, wanted)
        usual = _made(spec, {}).config
    if kind is not spec.type_hint:
        return dict(wanted)
    return {one: value for one, value in wanted.items() if one != "class" and usual.get(one) != value}


def _made(spec: Any, settings: Mapping[str, Any]) -> Any:
    own = {name: value for name, value in settings.items() if name != "class"}
    return _class_called(spec.name, spec, settings.get("class")).from_config(dict(spec.config or {}), **own)


def _class_called(component: str, spec: Any, name: Any) -> Any:
    if name in (None, spec.type_hint.__name__):
        return spec.type_hint
    cls = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not all(isinstance(one, type) and issubclass(one, BaseGuidance) for one in (cls, spec.type_hint)):
        raise UserError(f"components.{component}.class: {name!r} is no guider that can be a {spec.type_hint.__name__}")
    return cls


def is_block(cls: Any) -> bool:
    return isinstance(cls, type) and issubclass(cls, diffusers.ModularPipelineBlocks)


def class_of(cls: Any, blocks: Any, workflow: str | None = None) -> type:
    """A subclass that keeps the name, for the messages and for what diffusers looks up by it. `blocks`: all of the
    pipeline's, of which those of the `workflow` are kept."""
    outputs = tuple(output.name for output in blocks.outputs)  # a workflow's are all that its steps hand on
    blocks = blocks if workflow is None else blocks.get_workflow(workflow)
    specs = {spec.name: spec for spec in blocks.expected_components}
    fields = {
        "blocks_of_class": blocks,
        "block_classes": tuple({parent for block in _all(blocks) for parent in type(block).__mro__}),
        "parts": tuple(specs),
        "made": {name: spec for name, spec in specs.items() if spec.default_creation_method == "from_config"},
        "settings": tuple(spec.name for spec in blocks.expected_configs),
        "outputs": outputs,
        "triggers": tuple(sorted(_triggers(blocks))),
        "workflows": {name: _taken(steps) for name, steps in _workflows(blocks).items()},
        "model_cpu_offload_seq": "->".join(order_of(blocks)),
        "__call__": _call_with(_signature(blocks)),
        "__module__": cls.__module__,
    }
    return type(cls.__name__, (_Stock, cls), fields)


class _Stock:
    """What a modular pipeline's class lacks. Mixed in before it."""

    blocks_of_class: Any
    block_classes: Sequence[type]  # of the blocks and those inside them, with their parents
    parts: Sequence[str]  # the names of the components
    made: Mapping[str, Any]  # what diffusers says of those that the constructor makes where they are not given
    settings: Sequence[str]
    outputs: Sequence[str]
    triggers: Sequence[str]  # the inputs that choose between blocks
    workflows: Mapping[str, set[str]]  # the inputs of each
    _blocks: Any

    def __init__(self, **given: Any) -> None:
        settings = {name: value for name, value in given.items() if name in self.settings}
        components = {name: value for name, value in given.items() if name not in self.settings}
        for name in self.made.keys() & components.keys():
            if isinstance(components[name], dict):  # what `settings_of_made` returns
                components[name] = _made(self.made[name], components[name])
        super().__init__(  # type: ignore[call-arg]
            blocks=copy.deepcopy(self.blocks_of_class),
            modular_config_dict=settings,
        )
        self.register_components(**components)  # type: ignore[attr-defined]
        self._bar_options: dict[str, Any] = {}
        logging.getLogger("diffusers.modular_pipelines.modular_pipeline").addFilter(_is_no_echo)
        _count_own_bars(self._blocks)
        for block in _all(self._blocks):
            if hasattr(block, "progress_bar"):
                block.progress_bar = lambda *args, **kwargs: self.progress_bar(*args, **kwargs)

    @classmethod
    def _get_signature_types(cls) -> dict[str, tuple[Any, ...]]:
        """As other pipelines annotate their constructor."""
        hints = {spec.name: spec.type_hint for spec in cls.blocks_of_class.expected_components}
        return {name: () if hint is None else (hint,) for name, hint in hints.items()}

    @classmethod
    def refused(cls, call: Mapping[str, Any]) -> str | None:
        """Why the call of one request cannot be, or not as it is meant. Which steps run depends on the inputs that are
        given; what none of them takes would be ignored."""
        chosen = {name: call.get(name) for name in cls.triggers}
        with experimental(f"{cls.__name__} cannot choose its steps"):
            taken, required = cls._chosen_by(
                tuple((name, value if isinstance(value, _SCALARS) else True) for name, value in chosen.items())
            )
        if unused := [name for name in call if name not in taken]:
            takers = ", ".join(name for name, inputs in cls.workflows.items() if unused[0] in inputs)
            there = f"it takes part in {takers}" if takers else "another input takes its place"
            return f"{unused[0]} has no effect with the inputs that are given to {cls.__name__}; {there}"
        if missing := [name for name in required if call.get(name) is None]:
            return f"{cls.__name__} needs {missing[0]} for what is given; set job.call.{missing[0]}"
        return None

    @classmethod
    @functools.cache
    def _chosen_by(cls, given: tuple[tuple[str, Any], ...]) -> tuple[set[str], list[str]]:
        """What the steps that run with these triggers take, and what of it has to be given."""
        steps = cls.blocks_of_class.get_execution_blocks(**dict(given))
        return _taken(steps) | set(cls.triggers) | _OF_EVERY_CALL, _required(steps)

    def set_progress_bar_config(self, **options: Any) -> None:
        self._bar_options = options

    def progress_bar(self, iterable: Any = None, total: int | None = None) -> Any:
        """Of every loop of the blocks, so that steps can be counted in one place."""
        return tqdm(iterable, total=total, **self._bar_options)

    def run_blocks(self, arguments: Mapping[str, Any]) -> Any:
        """The outputs by name, as fields of an object that is read like that of any other pipeline."""
        running = _RUNNING.set(self)
        try:
            made = super().__call__(**arguments, output=list(self.outputs))  # type: ignore[misc]
        finally:
            _RUNNING.reset(running)
        kind = make_dataclass(f"{type(self).__name__}Output", self.outputs, bases=(BaseOutput,))
        return kind(**made)


def _call_with(signature: inspect.Signature) -> Any:
    def __call__(self: Any, **arguments: Any) -> Any:
        return self.run_blocks(arguments)

    __call__.__signature__ = signature  # type: ignore[attr-defined]
    return __call__


def _signature(blocks: Any) -> inspect.Signature:
    """The inputs of all workflows, by name; without a default are those that each of them requires."""
    kind = inspect.Parameter.KEYWORD_ONLY
    arguments = [
        inspect.Parameter(one.name, kind, default=one.default, annotation=_type_of(one))
        for one in blocks.inputs
        if one.name is not None
    ]
    required = set.intersection(*(set(_required(steps)) for steps in _workflows(blocks).values()))
    arguments = [one.replace(default=one.empty) if one.name in required else one for one in arguments]
    return inspect.Signature([inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD), *arguments])


def _type_of(one: Any) -> Any:
    """By its name, where the block leaves it out."""
    templates: Any = INPUT_PARAM_TEMPLATES
    return one.type_hint or templates.get(one.name, {}).get("type_hint") or Any


def _workflows(blocks: Any) -> dict[str, Any]:
    """The steps of each task that a pipeline does, which depends on the inputs given; one, where they have no names."""
    names = list(blocks._workflow_map or ())
    return {name: blocks.get_workflow(name) for name in names} or {"": blocks.get_execution_blocks()}


def _required(steps: Any) -> list[str]:
    return [one.name for one in steps.inputs if one.name and one.required and one.default is None]


def _taken(steps: Any) -> set[str]:
    return {one.name for one in steps.inputs}


def _triggers(block: Any) -> set[str]:
    own = getattr(block, "block_trigger_inputs", ())
    return {name for name in own if name}.union(*(_triggers(inner) for inner in block.sub_blocks.values()))


def order_of(blocks: Any) -> list[str]:
    """The components that are modules, by their last use: a VAE also encodes, and belongs to the end.

    What can decode comes after what the loop calls besides it (in Wan-Animate 2 the loop decodes, too).
    """
    used: dict[str, Any] = {}
    denoisers: set[str] = set()
    for block in _leaves(blocks):
        for spec in block.expected_components:
            if spec.type_hint is None or issubclass(spec.type_hint, nn.Module | diffusers.AutoModel):
                used.pop(spec.name, None)
                used[spec.name] = spec.type_hint
                if _is_loop(block) and not _decodes(spec.type_hint):
                    denoisers.add(spec.name)
    names = list(used)
    last = max((names.index(name) for name in denoisers), default=-1)
    early = [name for name in names[: last + 1] if _decodes(used[name])]
    return [*(name for name in names[: last + 1] if name not in early), *early, *names[last + 1 :]]


def _decodes(cls: Any) -> bool:
    return callable(getattr(cls, "decode", None))


def _is_loop(block: Any) -> bool:
    return isinstance(block, diffusers.modular_pipelines.LoopSequentialPipelineBlocks)


def _leaves(block: Any) -> Iterator[Any]:
    """The steps, in order; a loop is one."""
    if block.sub_blocks and not _is_loop(block):
        for inner in block.sub_blocks.values():
            yield from _leaves(inner)
    else:
        yield block


def _all(block: Any) -> Iterator[Any]:
    yield block
    for inner in block.sub_blocks.values():
        yield from _all(inner)


def _count_own_bars(blocks: Any) -> None:
    """Some loops (Helios, Wan-Animate 2) make their bar with the tqdm that their module imported: from now on, with the
    running pipeline's. Once for all pipelines, since requests may take turns inside a call."""
    for module in [sys.modules[name] for name in {type(block).__module__ for block in _all(blocks)}]:
        if isinstance(own := vars(module).get("tqdm"), type):
            vars(module)["tqdm"] = functools.partial(_bar, own)


def _bar(own: Any, iterable: Any = None, total: int | None = None, **options: Any) -> Any:
    pipeline = _RUNNING.get()
    return own(iterable, total=total, **options) if pipeline is None else pipeline.progress_bar(iterable, total)


def _is_no_echo(record: logging.LogRecord) -> bool:
    """Each block logs an exception that passes through, with a traceback, and that of a job that stops, too. It is
    raised all the same, and recorded by who catches it."""
    return "Error in block" not in str(record.msg)
