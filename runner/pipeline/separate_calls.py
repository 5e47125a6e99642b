"""Whether a pipeline calls its denoiser once for each condition of guidance, as far as its source tells.

With the prompt and without it: separate calls can be made by different ranks, a batch of both cannot. The source says
how many calls of a step there may be; how many there are depends on the request too, and is seen when it is made.
"""

import ast
import inspect
import textwrap
from collections.abc import Collection, Iterator, Mapping
from typing import Any


def separate_calls(cls: Any, components: Collection[str]) -> int:
    """The most places in the pipeline's own call that call one of these components, by its name or by a local name. A
    guider has one place call it once for each of its conditions: two, as a rule."""
    parts = {*inspect.signature(cls.__init__).parameters, *getattr(cls, "parts", ())}  # the latter of a modular one
    guided = 2 if any(name.endswith("guider") for name in parts) else 1
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls.__call__)))
    except (OSError, TypeError, SyntaxError):  # made at run time: nothing is known
        return guided
    denoisers = [name for name in components if name.startswith(("transformer", "unet", "prior", "dit"))]
    local = {name: name for name in denoisers} | dict(_local_names(tree, denoisers))
    places: dict[str, int] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (name := _called(node.func)) in local:
            places[name] = places.get(name, 0) + 1
    return max([guided, *places.values()])


def asks_for_guidance(cls: Any, call: Mapping[str, Any]) -> bool:
    """Whether a call of the pipeline has a second condition, as far as its scale tells: one of 1 or less turns guidance
    off, and so does a distilled model's true one without a negative prompt."""
    parameters = inspect.signature(cls.__call__).parameters
    name = next((one for one in ("true_cfg_scale", "guidance_scale") if one in parameters), None)
    if name is None:
        return True
    if name == "true_cfg_scale" and all(call.get(one) is None for one in ("negative_prompt", "negative_prompt_embeds")):
        return False
    scale = call.get(name, parameters[name].default)
    return not isinstance(scale, int | float) or scale > 1


def _local_names(tree: ast.AST, components: Collection[str]) -> Iterator[tuple[str, str]]:
    """`current_model = self.transformer`: what a local name stands for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and (name := _attribute_of_self(node.value)) in components:
            yield from ((target.id, name) for target in node.targets if isinstance(target, ast.Name) and name)


def _called(function: ast.expr) -> str:
    return function.id if isinstance(function, ast.Name) else _attribute_of_self(function) or ""


def _attribute_of_self(node: ast.expr) -> str | None:
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
        return node.attr
    return None
