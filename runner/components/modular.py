"""Modular pipelines of diffusers, each as a class that is used like the class of any other pipeline.

Diffusers puts such a pipeline together from blocks: steps that say which components they call, which inputs they take
and what they make of them. Some models exist only so. What the runner asks of a pipeline's class is made of the blocks
here: a constructor that takes the components, a call with a signature, the order of the components, outputs by name,
one progress bar. The API is experimental, and this file alone knows it.

[Note: what is not run]
Blocks come from diffusers only. Those that a directory brings as Python files are refused, and where an index names a
repository for a component, nothing is fetched from it.
"""

import copy
import inspect
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Any

import diffusers
from diffusers.utils import BaseOutput
from torch import nn
from tqdm import tqdm

from runner.components.reading import reading
from runner.errors import UserError

INDEX = "modular_model_index.json"
TRIED = ("0.42.1",)  # releases of diffusers that the tests ran with
_CODE = "modular_config.json"  # where a directory names blocks of its own


@dataclass(frozen=True)
class Spec:
    """What an index says of a component: the library and name of its class, the subfolder that its files are in, and
    the repository (or the path, elsewhere) that they came from."""

    library: str
    class_name: str
    subfolder: str
    origin: str


@contextmanager
def experimental(what: str) -> Iterator[None]:
    """Raise UserError, with the releases that were tried, for what diffusers raises inside."""
    tried = f"modular pipelines were tried with diffusers {' and '.join(TRIED)}, installed is {diffusers.__version__}"
    with reading(f"{what} ({tried})"):
        yield


def modular_class(index_file: Path, index: Mapping[str, Any]) -> Any:
    """The class for the pipeline that the index names. Raises UserError."""
    if (index_file.parent / _CODE).exists():
        raise UserError(
            f"{index_file.parent / _CODE} brings blocks of the directory's own, and code of a model is never run"
        )
    name, blocks_name = index.get("_class_name"), index.get("_blocks_class_name")
    with experimental(f"{index_file}: {name!r} cannot be imported"):
        cls = getattr(diffusers, name, None) if isinstance(name, str) else None
        if not (isinstance(cls, type) and issubclass(cls, diffusers.ModularPipeline)):
            raise UserError(
                f"{index_file}: {name!r} is no modular pipeline of diffusers {diffusers.__version__}, which is "
                f"installed; the directory was written by {index.get('_diffusers_version', 'an unknown version')}"
            )
        blocks: Any = getattr(diffusers, blocks_name, None) if isinstance(blocks_name, str) else None
        if not _are_blocks(blocks):  # as diffusers does, for a class that holds none itself
            blocks = getattr(diffusers, cls.default_blocks_name or "", None)
    if not _are_blocks(blocks):
        raise UserError(f"{index_file}: {blocks_name!r} are no blocks of diffusers, and code of a model is never run")
    with experimental(f"{index_file}: the blocks {blocks.__name__} cannot be put together"):
        return _class_of(cls, blocks)


def told_apart(index_file: Path, cls: Any, index: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Spec]]:
    """The pipeline's settings, None for a component that is not there, and what the index says of the others.

    What has no entry, or one without an origin, is made by the constructor (guiders, processors), or left out.
    """
    settings: dict[str, Any] = {name: index[name] for name in cls.settings if name in index}
    listed: dict[str, Spec] = {}
    for name, is_made in cls.parts.items():
        entry = index.get(name)
        if entry is not None and not (isinstance(entry, list) and len(entry) == 3 and isinstance(entry[2], dict)):
            raise UserError(f"{index_file}: {name} is {entry!r:.80}; a component is [library, class, where it is]")
        said = entry[2] if entry else {}
        if origin := said.get("pretrained_model_name_or_path", said.get("repo")):
            listed[name] = _spec(index_file, name, said, origin)
        elif not is_made:
            settings[name] = None
    return settings, listed


def folder_of(index_file: Path, name: str, spec: Spec) -> Path:
    """A component's folder, inside the index's. Raises UserError where it is not there: nothing is fetched."""
    root = index_file.parent
    for inside in (spec.subfolder, name):
        if inside and (root / inside).is_dir():
            return root / inside
    raise UserError(
        f"{root} has no folder {spec.subfolder or name}; {index_file.name} says that {name} is that of "
        f"{spec.origin!r}, and nothing is fetched: copy it there"
    )


def _spec(index_file: Path, name: str, said: Mapping[str, Any], origin: Any) -> Spec:
    hint, subfolder = said.get("type_hint"), said.get("subfolder") or ""
    library, class_name = hint if isinstance(hint, list) and len(hint) == 2 else (None, None)
    if not all(isinstance(text, str) for text in (library, class_name, subfolder, origin)):
        raise UserError(f"{index_file}: {name} has {dict(said)!r:.120}; it needs a type_hint, [library, class]")
    if Path(subfolder).is_absolute() or ".." in Path(subfolder).parts:
        raise UserError(f"{index_file}: the subfolder of {name} is {subfolder!r}, outside of the directory")
    return Spec(str(library), str(class_name), subfolder, origin)


def is_block(cls: Any) -> bool:
    return isinstance(cls, type) and issubclass(cls, diffusers.ModularPipelineBlocks)


def _are_blocks(cls: Any) -> bool:
    return is_block(cls) and bool(cls.block_classes)


def _class_of(cls: Any, blocks_class: Any) -> type:
    """A subclass that keeps the name, for the messages and for what diffusers looks up by it."""
    blocks = blocks_class()
    specs = {spec.name: spec for spec in blocks.expected_components}
    made = {name: spec.default_creation_method == "from_config" for name, spec in specs.items()}
    fields = {
        "blocks_class": blocks_class,
        "block_classes": tuple({parent for block in _all(blocks) for parent in type(block).__mro__}),
        "parts": made,
        "settings": tuple(spec.name for spec in blocks.expected_configs),
        "model_cpu_offload_seq": "->".join(order_of(blocks)),
        "__call__": _call_with(_signature(blocks)),
        "__module__": cls.__module__,
    }
    return type(cls.__name__, (_Stock, cls), fields)


class _Stock:
    """What a modular pipeline's class lacks. Mixed in before it."""

    blocks_class: Any
    block_classes: Sequence[type]  # of the blocks and those inside them, with their parents
    parts: Mapping[str, bool]  # the components by name: whether the constructor makes it where it is not given
    settings: Sequence[str]
    _blocks: Any

    def __init__(self, **given: Any) -> None:
        settings = {name: value for name, value in given.items() if name in self.settings}
        components = {name: value for name, value in given.items() if name not in self.settings}
        super().__init__(  # type: ignore[call-arg]
            # A copy: some blocks are objects that all pipelines of a class share.
            blocks=copy.deepcopy(self.blocks_class()),
            modular_config_dict=settings,
        )
        self.register_components(**components)  # type: ignore[attr-defined]
        self._bar_options: dict[str, Any] = {}
        for block in _all(self._blocks):
            if hasattr(block, "progress_bar"):
                block.progress_bar = lambda *args, **kwargs: self.progress_bar(*args, **kwargs)

    def set_progress_bar_config(self, **options: Any) -> None:
        self._bar_options = options

    def progress_bar(self, iterable: Any = None, total: int | None = None) -> Any:
        """Of every loop of the blocks, so that steps can be counted in one place."""
        return tqdm(iterable, total=total, **self._bar_options)

    @contextmanager
    def _counting_bars(self) -> Iterator[None]:
        """Some loops (Helios, Wan-Animate 2) make their bar with the tqdm that their module imported."""
        modules = [sys.modules[name] for name in sorted({type(block).__module__ for block in _all(self._blocks)})]
        with ExitStack() as undo:
            for module in modules:
                if (own := vars(module).get("tqdm")) is not None:
                    undo.callback(setattr, module, "tqdm", own)
                    module.tqdm = lambda iterable=None, total=None, **_: self.progress_bar(iterable, total)  # type: ignore[attr-defined]
            yield

    def run_blocks(self, arguments: Mapping[str, Any]) -> Any:
        """The outputs by name, as fields of an object that is read like that of any other pipeline."""
        names = [output.name for output in self._blocks.outputs]
        with _quiet(), self._counting_bars():
            made = super().__call__(**arguments, output=names)  # type: ignore[misc]
        kind = make_dataclass(f"{type(self).__name__}Output", names, bases=(BaseOutput,))
        return kind(**made)


def _call_with(signature: inspect.Signature) -> Any:
    def __call__(self: Any, **arguments: Any) -> Any:
        prompt = arguments.get("prompt")
        if isinstance(prompt, list) and len(prompt) == 1:  # blocks are documented to take a text, and some refuse lists
            arguments["prompt"] = prompt[0]
        return self.run_blocks(arguments)

    __call__.__signature__ = signature  # type: ignore[attr-defined]
    return __call__


def _signature(blocks: Any) -> inspect.Signature:
    """The inputs of all workflows, by name. What a workflow requires is only known with the inputs that are given."""
    kind = inspect.Parameter.KEYWORD_ONLY
    arguments = [
        inspect.Parameter(one.name, kind, default=one.default, annotation=one.type_hint or Any)
        for one in blocks.inputs
        if one.name is not None
    ]
    return inspect.Signature([inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD), *arguments])


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


@contextmanager
def _quiet() -> Iterator[None]:
    """Each block logs an exception that passes through, with a traceback: that of a job that stops, too. It is raised
    all the same, and recorded by who catches it."""
    logger = logging.getLogger("diffusers.modular_pipelines.modular_pipeline")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before
