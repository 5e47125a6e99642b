"""Optional packages that a pipeline's code asks for: diffusers guards their import, but not always their use.

Found in its source, as it was imported: 17 pipelines of diffusers 0.42.1 use ftfy or torchvision without asking again
whether it is there (all Wan with a picture, SkyReels-V2, Lucy, Helios, ChronoEdit, PRX; OmniGen, Cosmos 2.5).
"""

import ast
import inspect
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from textwrap import dedent
from types import FunctionType, ModuleType
from typing import Any

from runner.components.modular import is_block
from runner.components.reading import reading
from runner.errors import UserError

# Where these are there, prompts or pictures become other ones: ftfy mends text, bs4 strips markup from it, torchvision
# resizes pictures (transformers takes its image processors from it), invisible_watermark writes into the result.
DECIDING = ("ftfy", "bs4", "torchvision", "invisible_watermark")

_PIPELINES = ("diffusers.pipelines.", "diffusers.modular_pipelines.")
# A guarded import with its block, which no else follows.
_GUARDED = re.compile(r"^if is_(\w+)_available\(\):\n((?:[ \t]+.*\n|\n)++)(?!else|elif)", re.MULTILINE)


def refuse_missing(cls: type) -> None:
    """Raises UserError for a package that the pipeline class's code would use without being there."""
    for module in _modules_of(cls):
        for package in _unguarded(module, _source_of(module, cls)):
            raise UserError(f"{cls.__name__} uses {package}, which is not installed: pip install {package}")


def deciding(cls: type) -> dict[str, bool]:
    """Whether they are there, of the packages that decide inputs or pixels: those that the class's code asks for."""
    found = {}
    for module in _modules_of(cls):
        for package in DECIDING:
            available = getattr(module, f"is_{package}_available", None)
            if callable(available):
                found[package] = bool(available())
    return found


def does_without(cls: type, name: str) -> bool:
    """Whether the class's code asks if it has this component (or the encoder that this tokenizer belongs to).

    A component that is listed as null and that the constructor wants: SD3 without its T5 works, PixArt without its VAE
    is made, and fails at each call.
    """
    question = f"self.{name.replace('tokenizer', 'text_encoder')} is None"
    return any(question in inspect.getsource(module) for module in _modules_of(cls))


def refuse_unmakeable(cls: type, settings: Mapping[str, Any], given: Collection[str]) -> None:
    """Raises UserError where the constructor would make a component itself whose package is not installed.

    Cosmos makes a safety checker where it is given none. Without its package diffusers has a class in its place that
    raises when it is made; that is found here, before minutes of loading.
    """
    for name, made in made_by_constructor(cls, settings, given).items():
        if made.__module__.startswith(_PIPELINES) and "ImportError" in inspect.getsource(made):
            with reading(f"{cls.__name__} makes its {name} itself"):
                made()


def made_by_constructor(cls: type, settings: Mapping[str, Any], given: Collection[str]) -> dict[str, type]:
    """Components that are not given and that the constructor then makes: `if x is None: x = Class()`, in its source."""
    parameters = inspect.signature(cls.__init__).parameters  # type: ignore[misc]
    values = {name: settings.get(name, one.default) for name, one in parameters.items() if name not in given}
    constructor: Any = inspect.unwrap(cls.__init__)  # type: ignore[misc]
    module = sys.modules[constructor.__module__]
    found = {}
    for assigned in _assigned(_body_of(constructor, module), values):
        target, call = assigned.targets[0], assigned.value
        if isinstance(target, ast.Name) and isinstance(call, ast.Call) and isinstance(call.func, ast.Name):
            made = getattr(module, call.func.id, None)
            if target.id in values and isinstance(made, type):
                found[target.id] = made
    return found


def _body_of(method: Any, module: ModuleType) -> list[ast.stmt]:
    """By the source of its module: that of a method alone cannot be dedented where it holds a long text."""
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef) and f"{node.name}.{inner.name}" == method.__qualname__:
                    return inner.body
    return []


def _assigned(body: list[ast.stmt], values: Mapping[str, Any]) -> Iterator[ast.Assign]:
    """Assignments that are made with these arguments, below `if x`, `if x is None` and `if not isinstance(x, ...)`."""
    for statement in body:
        if isinstance(statement, ast.Assign):
            yield statement
        elif isinstance(statement, ast.If) and _holds(statement.test, values):
            yield from _assigned(statement.body, values)


def _holds(test: ast.expr, values: Mapping[str, Any]) -> bool:
    match test:
        case ast.Name(id=name):
            return bool(values.get(name))
        case ast.Compare(left=ast.Name(id=name), ops=[ast.Is()], comparators=[ast.Constant(value=None)]):
            return name in values and values[name] is None
        case ast.UnaryOp(op=ast.Not(), operand=ast.Call(func=ast.Name(id="isinstance"), args=[ast.Name(id=name), _])):
            return name in values
    return False


def _modules_of(cls: type) -> list[ModuleType]:
    """Of the class, its parents and its blocks, and those of its pipeline's functions that come from a neighbour."""
    names = [one.__module__ for one in (*cls.__mro__, *getattr(cls, "block_classes", ()))]
    for name in list(names):
        values = vars(sys.modules[name]).values()
        names += [value.__module__ for value in values if isinstance(value, FunctionType)]
    ours = [name for name in dict.fromkeys(names) if name.startswith(_PIPELINES)]
    return [sys.modules[name] for name in ours if name in sys.modules]


def _source_of(module: ModuleType, cls: type) -> str:
    """Without the blocks that a modular pipeline does not have: a module holds those of all of a family's pipelines."""
    source = inspect.getsource(module)
    unused = [one for one in vars(module).values() if is_block(one) and one not in getattr(cls, "block_classes", ())]
    for one in unused:
        if one.__module__ == module.__name__:
            source = source.replace(inspect.getsource(one), "")
    return source


def _unguarded(module: ModuleType, source: str) -> Iterator[str]:
    """Packages that are not there, of `if is_x_available(): import x` without an else, asked once, whose x is used."""
    for package, block in _GUARDED.findall(source):
        question = f"is_{package}_available"
        imports = [node for node in ast.walk(ast.parse(dedent(block))) if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {(alias.asname or alias.name).partition(".")[0] for one in imports for alias in one.names}
        if source.count(f"{question}()") == 1 and not getattr(module, question)() and _uses(source, names):
            yield package


def _uses(source: str, names: set[str]) -> bool:
    """Whether the code has one of the names anywhere but in an import."""
    if all(len(re.findall(rf"\b{name}\b", source)) < 2 for name in names):  # quick: no need to walk through all of it
        return False
    return any(isinstance(node, ast.Name) and node.id in names for node in ast.walk(ast.parse(source)))
