"""Which blocks are read from outside themselves, found in the code of the modules that hold them.

FSDP gathers a block's weights around the block's own forward. Code elsewhere that reaches into a block, such as
`self.transformer_blocks[0].norm1.emb(timestep)` in a parent's forward, finds them sharded. This module reads the source
of every method that a holder of blocks runs and resolves each attribute chain on the live modules, so that reading a
plain attribute (`block.attention_type`, `layer.weight.dtype`) is told apart from reading weights. Names are followed
through assignments and loops without regard to their order (a flow-insensitive points-to analysis): it may keep a block
whole that need not be, and `sharding/recovery.py` names what it misses.
"""

import ast
import inspect
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import nn

_METADATA = frozenset(
    {"device", "dim", "dtype", "is_meta", "layout", "ndim", "numel", "requires_grad", "shape", "size"}
)
_QUESTIONS = frozenset({"hasattr", "isinstance", "len", "type"})


@dataclass(frozen=True)
class _Method:
    owner: nn.Module
    name: str


def outside_reads(
    root: nn.Module, blocks: Mapping[nn.Module, str], entry_points: Iterable[str]
) -> dict[nn.Module, str]:
    """The blocks whose weights code outside them reads, each with that code.

    `blocks` maps a block to its name; `entry_points` are the methods of `root` that run (`forward`, `decode`, ...).
    """
    block_of = {inner: block for block in blocks for inner in block.modules()}
    holders = [m for m in root.modules() if m not in block_of and any(inner in blocks for inner in m.modules())]
    pending = [_Method(root, name) for name in entry_points] + [_Method(holder, "forward") for holder in holders]
    seen: set[_Method] = set()
    found: dict[nn.Module, str] = {}
    while pending:
        method = pending.pop()
        if method in seen:
            continue
        seen.add(method)
        for function in _definitions(method):
            code = _Code(method.owner, function)
            for chain in code.outermost_chains():
                for value in code.values(chain):
                    if isinstance(value, _Method) and value.owner not in block_of:
                        pending.append(value)
                    elif (block := _block_read(value, block_of)) is not None:
                        found.setdefault(block, f"{type(method.owner).__name__}.{method.name}: {ast.unparse(chain)}")
    return found


def _block_read(value: object, block_of: Mapping[nn.Module, nn.Module]) -> nn.Module | None:
    """The block whose weights are reached by using `value` outside of it; None where using it is harmless."""
    if isinstance(value, _Method):
        return block_of[value.owner]  # even `block.forward(x)`: it bypasses the hooks that gather the weights
    if isinstance(value, nn.Parameter):
        holders = (inner for inner in block_of if any(p is value for p in inner.parameters(recurse=False)))
        return next((block_of[inner] for inner in holders), None)
    if isinstance(value, nn.Module) and any(True for _ in value.parameters()):
        block = block_of.get(value)
        return block if block is not value else None
    return None


def _definitions(method: _Method) -> Iterator[ast.FunctionDef]:
    """The source of the method in each class that defines it (an override may call `super()`)."""
    for cls in type(method.owner).__mro__:
        function = cls.__dict__.get(method.name)
        if cls is nn.Module or not inspect.isfunction(function):
            continue
        try:
            source = inspect.getsource(inspect.unwrap(function))
        except OSError:  # defined where no source is kept; the guard remains
            continue
        tree = ast.parse(textwrap.dedent(source)).body[0]
        if isinstance(tree, ast.FunctionDef):
            yield tree


class _Code:
    """One method's syntax tree, with its names resolved to the live objects they may stand for."""

    def __init__(self, owner: nn.Module, tree: ast.FunctionDef) -> None:
        self.owner = owner
        self.tree = tree
        self.names: dict[str, list[object]] = {}
        if tree.args.args:
            self.names[tree.args.args[0].arg] = [owner]
        for _ in range(2):  # the second round resolves names bound by later lines (loops)
            for node in ast.walk(tree):
                self._bind(node)

    def outermost_chains(self) -> Iterator[ast.expr]:
        """Attribute and subscript chains as long as they go: `self.a[0].b.c`, not the `self.a` within, nor a chain
        that is only asked about, as in `len(block.resnets)`."""
        asked: set[int] = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _QUESTIONS:
                asked.update(id(argument) for argument in node.args)
        return (chain for chain in _chains(self.tree) if id(chain) not in asked)

    def values(self, node: ast.expr) -> list[object]:
        """The modules, parameters, methods and containers of modules that an expression may stand for."""
        if isinstance(node, ast.Name):
            return self.names.get(node.id, [])
        if isinstance(node, ast.Attribute):
            return [v for base in self.values(node.value) for v in _attribute(base, node.attr)]
        if isinstance(node, ast.Subscript):
            return [v for base in self.values(node.value) for v in _subscript(base, node.slice)]
        if isinstance(node, ast.IfExp):
            return self.values(node.body) + self.values(node.orelse)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super":
            return [self.owner]
        return []

    def _bind(self, node: ast.AST) -> None:
        if isinstance(node, ast.Assign):
            for name in node.targets:
                self._add(name, self.values(node.value))
        elif isinstance(node, ast.NamedExpr):
            self._add(node.target, self.values(node.value))
        elif isinstance(node, ast.For | ast.comprehension):
            # Through enumerate, zip, reversed: every container named in the iterable may feed every target.
            parts = [node.iter, *_chains(node.iter), *(n for n in ast.walk(node.iter) if isinstance(n, ast.Name))]
            elements = [e for part in parts for value in self.values(part) for e in _elements(value)]
            for target in ast.walk(node.target):
                self._add(target, elements)

    def _add(self, target: ast.AST, values: list[object]) -> None:
        if isinstance(target, ast.Name):
            known = self.names.setdefault(target.id, [])
            known.extend(v for v in values if not any(v is k for k in known))


def _chains(tree: ast.AST) -> list[ast.Attribute | ast.Subscript]:
    """The attribute and subscript chains below, each as long as it goes."""
    links = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute | ast.Subscript)]
    inner = {id(link.value) for link in links}
    return [link for link in links if id(link) not in inner]


def _attribute(base: object, name: str) -> list[object]:
    if isinstance(base, nn.Parameter):  # a method of it reads it, `.dtype` and its like do not
        return [] if name in _METADATA else [base]
    if not isinstance(base, nn.Module):
        return []
    for table in (base._modules, base._parameters, vars(base)):
        value = table.get(name)
        if isinstance(value, nn.Module | nn.Parameter | list | tuple):
            return [value]
    function = inspect.getattr_static(type(base), name, None)
    if inspect.isfunction(function) and function is not getattr(nn.Module, name, None):
        return [_Method(base, name)]
    return []


def _subscript(base: object, index: ast.expr) -> list[object]:
    elements = _elements(base)
    try:
        if isinstance(index, ast.Slice):
            bounds = (index.lower, index.upper, index.step)
            return [tuple(elements[slice(*(ast.literal_eval(bound) if bound else None for bound in bounds))])]
        position = ast.literal_eval(index)
    except ValueError:  # known only when it runs: it may be any element, or a part of them
        return [*elements, tuple(elements)]
    if isinstance(base, nn.ModuleDict):
        return [base[position]] if position in base else []
    in_range = isinstance(position, int) and -len(elements) <= position < len(elements)
    return [elements[position]] if in_range else []


def _elements(value: object) -> list[object]:
    if isinstance(value, nn.ModuleDict):
        return list(value.values())
    if isinstance(value, nn.ModuleList | nn.Sequential | list | tuple):
        return [element for element in value if isinstance(element, nn.Module)]
    return []
