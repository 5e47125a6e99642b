"""Which components' tokens `mesh.context` shares out, and why not others': known before weights are loaded."""

import inspect
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

from runner.components.component import Component
from runner.components.context import has_plan
from runner.components.directory import Directory
from runner.components.source import Source
from runner.errors import UserError
from weights.files import read_object

# Whose calls, shared out, are what whole ones are, but for the last bits: tests/distributed/test_context_forwards.py.
PROVEN = frozenset(
    {
        "ChronoEditTransformer3DModel",
        "Flux2Transformer2DModel",
        "FluxTransformer2DModel",
        "HeliosTransformer3DModel",
        "MiniMaxH3Transformer3DModel",
        "QwenImageTransformer2DModel",
        "WanTransformer3DModel",
    }
)
# What the plans of diffusers 0.42.1 do not do right, of classes, of their settings, and of pipelines over them.
_CLASSES: Mapping[str, str] = MappingProxyType(
    {
        "LTXVideoTransformer3DModel": "its mask has a row for each head, and the timesteps of its tokens stay whole",
    }
)
_SETTINGS: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        ("HeliosTransformer3DModel", "is_amplify_history"): "it would look for the history among its own tokens alone",
    }
)
_PIPELINES: Mapping[str, str] = MappingProxyType(
    {
        "Flux2KleinKVPipeline": "it keeps the keys and values of the reference picture's tokens apart by their places",
    }
)
_FEW = 4
_INSTEAD = (
    "use mesh.context=1: these ranks then make requests of their own, or share out the calls with and without a prompt "
    "(mesh.guidance)"
)


def unproven(components: Sequence[Component]) -> list[str]:
    """Those that share out tokens by a plan that no test has proven: a call of the loaded model has to, before any
    request is made."""
    return [one.name for one in components if one.context > 1 and type(one.module).__name__ not in PROVEN]


def check_context(directory: Directory, ranks: int, *, compiled: bool = False) -> tuple[str, ...]:
    """The components whose tokens `ranks` ranks can share out; none for one rank. Raises UserError where there is none,
    or where one of them cannot."""
    if ranks == 1:
        return ()
    asked = f"mesh.context={ranks}"
    if compiled:
        raise UserError(
            f"{asked} with execution.compile: where the ranks do not divide the tokens, they tell each other's numbers "
            "inside the blocks, which no graph can hold; leave one of the two out"
        )
    name = directory.pipeline.__name__
    if why := _PIPELINES.get(name):
        raise UserError(f"{asked}: a {name} cannot share out its tokens: {why}; {_INSTEAD}")
    planned = [source for source in directory.sources.values() if has_plan(source.cls)]
    if not planned:
        classes = ", ".join(f"{one.name} ({one.cls.__name__})" for one in directory.sources.values() if one.is_module)
        raise UserError(f"{asked}: diffusers has no plan to share out the tokens of any of {classes}; {_INSTEAD}")
    for source in planned:
        _check(source, ranks, f"{asked}: {source.name} ({source.cls.__name__})")
    return tuple(source.name for source in planned)


def context_that_fits(directory: Directory, size: int, *, compiled: bool = False) -> list[int]:
    """The numbers of ranks, of `size`, that may share out the tokens of calls where nobody said how many: by plans that
    a test has proven, and so few that a short prompt has as many tokens."""
    planned = {source.cls.__name__ for source in directory.sources.values() if has_plan(source.cls)}
    if not planned <= PROVEN:
        return [1]
    return [number for number in range(1, _FEW + 1) if size % number == 0 and _may(directory, number, compiled)]


def _may(directory: Directory, ranks: int, compiled: bool) -> bool:
    try:
        check_context(directory, ranks, compiled=compiled)
    except UserError:
        return False
    return True


def _check(source: Source, ranks: int, which: str) -> None:
    kind, settings = source.cls.__name__, _settings_of(source)
    if why := _CLASSES.get(kind):
        raise UserError(f"{which} cannot share out its tokens: {why}; {_INSTEAD}")
    for (owner, setting), why in _SETTINGS.items():
        if owner == kind and settings.get(setting):
            raise UserError(f"{which} with {setting} cannot share out its tokens: {why}; {_INSTEAD}")
    heads = settings.get("num_attention_heads")
    if isinstance(heads, int) and heads % ranks:
        fits = [str(number) for number in range(1, heads + 1) if heads % number == 0]
        raise UserError(f"{which} has {heads} heads, which {ranks} ranks do not divide; {', '.join(fits)} do")
    backend = source.changes.attention or _AttentionBackendRegistry.get_active_backend()[0].value
    if not _AttentionBackendRegistry._is_context_parallel_available(AttentionBackendName(backend)):
        able = ", ".join(sorted(_AttentionBackendRegistry._supports_context_parallel))
        raise UserError(f"{which}: the attention backend {backend} cannot exchange tokens; these can: {able}")


def _settings_of(source: Source) -> dict[str, Any]:
    """As the class's constructor takes them, with its own values for those that are not stored."""
    parameters = inspect.signature(source.cls.__init__).parameters.values()
    own = {one.name: one.default for one in parameters if one.default is not one.empty}
    return own | read_object(source.folder / "config.json")
