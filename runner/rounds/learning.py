"""What the first call of a kind tells of the next ones: computed on every rank, watched from all sides."""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._pytree import TreeSpec, tree_flatten

import offload
from runner.calls.randomness import generator_states
from runner.calls.recorded import NotKept, fingerprint
from runner.calls.stateful import State, state_of, what_changed
from runner.calls.turns import this_turn
from runner.components.component import Component
from runner.rounds.leaves import leaves_of
from runner.rounds.signature import Spec

_CONSTANT = (bool, int, float, str, type(None), torch.dtype, torch.device)
_SETTLING = 3  # calls in a row in which a component may set up what it then only reads


class KeepsState(Exception):
    """A call that another rank's cannot stand for: why."""


@dataclass(frozen=True)
class Learned:
    """Of the calls of one kind. `leaves`: of the results, put together as `tree` says, tensors as specs and constants
    as they are; `first`: for each leaf the place of the first one that is the same object. `blocks`: those whose
    weights came up, in order."""

    tree: TreeSpec
    leaves: tuple[Any, ...]
    first: tuple[int, ...]
    blocks: tuple[int, ...]


def described(output: Any) -> tuple[TreeSpec, tuple[Any, ...], list[Any]]:
    """How a result is put together, what its leaves are like, and the leaves."""
    leaves, tree = tree_flatten(output)
    return tree, tuple(Spec.of(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves), leaves


@dataclass
class Knowledge:
    """What calls have told so far, by component: each kind of call, the widest round that was seen, and why its calls
    are not shared out."""

    calls: dict[tuple[str, Hashable], Learned] = field(default_factory=dict)
    widest: dict[str, int] = field(default_factory=dict)
    serial: dict[str, str] = field(default_factory=dict)
    unsettled: dict[str, int] = field(default_factory=dict)

    def copy(self) -> "Knowledge":
        return Knowledge(dict(self.calls), dict(self.widest), dict(self.serial), dict(self.unsettled))

    def add(self, other: "Knowledge") -> None:
        """The same whichever of several is added first."""
        self.calls |= other.calls
        self.serial |= {name: why for name, why in other.serial.items() if name not in self.serial}
        for name, width in other.widest.items():
            self.widest[name] = max(self.widest.get(name, 0), width)
        for name, number in other.unsettled.items():
            self.unsettled[name] = max(self.unsettled.get(name, 0), number)

    def learn(
        self,
        component: Component,
        signature: Hashable,
        compute: Callable[[], Any],
        inputs: tuple[Any, Any],
        device: torch.device,
        generator: torch.Generator | None,
    ) -> Any:
        """Make the call, and see whether another one could stand for it. Afterwards the kind is known, or the component
        `serial`, or neither: it set something up, and the next call tells."""
        name, module = component.name, component.module
        try:
            called = fingerprint(name, *inputs)
        except NotKept as error:
            self.serial[name] = str(error)
            return compute()
        states, held = generator_states(device, generator), state_of(module)
        with _blocks_run(module) as blocks:
            output = compute()
        try:
            if generator_states(device, generator) != states:
                raise KeepsState("it draws random numbers")
            if fingerprint(name, *inputs) != called:
                raise KeepsState("it writes into what it is called with")
            if self._is_settled(name, held, module):
                self.calls[name, signature] = _learned(output, inputs, tuple(blocks))
        except KeepsState as error:
            self.serial[name] = str(error)
        return output

    def _is_settled(self, name: str, held: State, module: nn.Module) -> bool:
        changed = what_changed(held, state_of(module))
        if changed is None:
            self.unsettled.pop(name, None)
            return True
        self.unsettled[name] = self.unsettled.get(name, 0) + 1
        if self.unsettled[name] > _SETTLING:
            raise KeepsState(f"it keeps state in {changed}")
        return False


def _learned(output: Any, inputs: Any, blocks: tuple[int, ...]) -> Learned:
    tree, leaves, values = described(output)
    places: dict[int, int] = {}
    first = tuple(places.setdefault(id(value), place) for place, value in enumerate(values))
    memory = {t.untyped_storage().data_ptr() for t in leaves_of(inputs) if isinstance(t, Tensor)}
    for place, value in enumerate(values):
        if isinstance(value, Tensor):
            if type(value) is not Tensor or value.layout is not torch.strided:
                raise KeepsState(f"its result holds a {type(value).__name__} ({value.layout})")
            if first[place] == place and (start := value.untyped_storage().data_ptr()):
                if start in memory:
                    raise KeepsState("its results share memory, with one another or with what it is called with")
                memory.add(start)
        elif not isinstance(value, _CONSTANT):
            raise KeepsState(f"its result holds a {type(value).__name__}")
    return Learned(tree, leaves, first, blocks)


@contextmanager
def _blocks_run(module: nn.Module) -> Iterator[list[int]]:
    """The blocks whose weights move, by their place in the module, as they run."""
    offloader = offload.offloader_of(module)
    moving = set() if offloader is None else set(offloader.blocks.values())
    place = {
        inner: index
        for index, inner in enumerate(module.modules())
        if inner in moving or (inner is not module and isinstance(inner, FSDPModule))
    }
    ran: list[int] = []
    turn = this_turn()

    def note(inner: nn.Module, _: Any) -> None:
        if inner in place and this_turn() is turn:  # others may run theirs while this one waits for a block
            ran.append(place[inner])

    handle = register_module_forward_pre_hook(note) if place else None
    try:
        yield ran
    finally:
        if handle is not None:
            handle.remove()
