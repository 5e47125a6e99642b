"""Which `output_type` a pipeline's call is given for each format, read off what its own source compares it with."""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any

from diffusers import DiffusionPipeline

from runner.config import Format
from runner.errors import UserError

_WITH_SOURCE = ("diffusers.pipelines.", "diffusers.modular_pipelines.")
# They compare it with "latent", and then return a variable that they set only otherwise.
_NO_LATENTS = ("QwenImageLayeredPipeline",)


def output_type(cls: Any, format: Format) -> str:
    """Raises UserError for a format that this pipeline class is known not to have."""
    allowed = _allowed(cls)
    if format is Format.latent:
        if cls.__name__ in _NO_LATENTS or "latent" not in (allowed if allowed is not None else _compared(cls)):
            raise UserError(f"job.format=latent: {cls.__name__} has no latents to give; use auto or npy")
        return "latent"
    # A pipeline whose own choice is tensors makes no pictures: sound, coordinates, light beyond white.
    parameter = inspect.signature(cls.__call__).parameters.get("output_type")
    makes_pictures = parameter is None or parameter.default != "pt"
    wanted = ["pil", "np", "pt"] if format is Format.auto and makes_pictures else ["np", "pt"]
    return next((one for one in wanted if allowed is None or one in allowed), "np")


def _allowed(cls: Any) -> frozenset[str] | None:
    """What all others are refused for by the pipeline itself; None where it refuses none."""
    for node in _nodes(cls):
        if not (isinstance(node, ast.If) and any(isinstance(one, ast.Raise) for one in node.body)):
            continue
        if isinstance(node.test, ast.Compare) and isinstance(node.test.ops[0], ast.NotIn) and _names(node.test):
            return _names(node.test)
    return None


def _compared(cls: Any) -> frozenset[str]:
    """What it is compared with; "latent" too where a pipeline only hands it on to another one."""
    found = {name for node in _nodes(cls) if isinstance(node, ast.Compare) for name in _names(node)}
    hands_on = any(
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr.endswith("_pipe")
        and any(keyword.arg == "output_type" for keyword in node.keywords)
        for node in _nodes(cls)
    )
    return frozenset(found | ({"latent"} if hands_on else set()))


def _names(compare: ast.Compare) -> frozenset[str]:
    """The texts that a comparison of `output_type` names."""
    compared = compare.left
    name = compared.id if isinstance(compared, ast.Name) else getattr(compared, "attr", "")  # block_state.output_type
    if name != "output_type":
        return frozenset()
    constants = [node.value for node in ast.walk(compare.comparators[0]) if isinstance(node, ast.Constant)]
    return frozenset(value for value in constants if isinstance(value, str))


def _nodes(cls: Any) -> Iterator[ast.AST]:
    """Of the source of the class and of those it is made from, but for what all pipelines share. That of a modular
    pipeline is in its blocks."""
    for owner in (*cls.__mro__, *getattr(cls, "block_classes", ())):
        if owner is not DiffusionPipeline and owner.__module__.startswith(_WITH_SOURCE):
            yield from ast.walk(ast.parse(textwrap.dedent(inspect.getsource(owner))))
