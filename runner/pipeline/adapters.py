"""The adapters of a run: read and checked at the start, switched between requests without reloading the base."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import nn

import offload
from lora import (
    Adapter,
    AdapterError,
    BesideLayers,
    Edits,
    LowRank,
    MergedWeights,
    ReadBase,
    Terms,
    adapter_identity,
    edits_of,
    forget_scales,
    on_device,
    read_adapter,
    write_merged,
)
from lora.settings import is_finite
from runner.components.borrowed import Loan
from runner.components.component import Component
from runner.components.skeleton import checkpoint_of
from runner.components.source import Source
from runner.config import LoraConfig, LoraMode, adapter_name
from runner.errors import UserError
from runner.world import World
from weights.files import FileError
from weights.modes import normal_mode
from weights.stored_weights import StoredWeights
from weights.tied import tied_names

NO_ARGUMENTS: Mapping[str, Any] = MappingProxyType({})


class Place(Protocol):
    """Where one component's adapters are put, whatever its placement."""

    def set(self, edits: Edits) -> None:
        """Make the component base + edits, from any mode; all or nothing."""


class Adapters:
    """The adapters by name, and which of them are active now. Without any, every method does nothing.

    Each rank switches on its own: no weights that ranks share are written.
    """

    def __init__(self, config: LoraConfig, adapters: Mapping[str, Adapter], places: Mapping[str, Place]) -> None:
        self._mode = config.mode
        self._strengths = {adapter_name(one): one.strength for one in config.adapters}
        self._adapters = dict(adapters)
        self._places = dict(places)
        self._active: dict[str, float] = {}

    def choose(
        self, asked: Mapping[str, float] | None, where: str, call: Mapping[str, Any] = NO_ARGUMENTS
    ) -> dict[str, float]:
        """The strengths by name that a prompt is made with: those it asks for, else the configured ones.

        Raises UserError, saying `where`, for a name that is not configured, and for an argument of the `call` that is
        for adapters and could not reach these.
        """
        chosen = self._strengths if asked is None else asked
        for name in chosen:
            if name not in self._adapters:
                known = ", ".join(self._adapters) or "none; set lora.adapters"
                raise UserError(f"{where}: lora {name!r} is not configured; there is {known}")
        active = {name: strength for name, strength in chosen.items() if strength != 0}
        if active:  # without, the libraries ignore a scale, whatever it is
            self._check_scales(call, where)
        return active

    def _check_scales(self, call: Mapping[str, Any], where: str) -> None:
        """Pipelines take a factor for all adapters as `scale`, within the arguments for attention layers.

        They know three names: attention_kwargs, joint_attention_kwargs, cross_attention_kwargs.
        """
        for name, value in call.items():
            if not (name.endswith("attention_kwargs") and isinstance(value, Mapping) and "scale" in value):
                continue
            scale = value["scale"]
            if not is_finite(scale):
                raise UserError(f"{where}: {name}.scale is {scale!r}; give it a finite number")
            if self._mode is LoraMode.merge and scale != 1:
                raise UserError(
                    f"{where}: {name}.scale={scale} has no effect with lora.mode=merge, where adapters are in the "
                    "weights; set lora.mode=dynamic, or multiply the adapters' own strengths"
                )

    def identity(self, active: Mapping[str, float]) -> dict[str, Any]:
        """What decides the pixels of a request beside its own fields: nothing where no adapter is active.

        The order counts, since it is the order of a sum; names do not.
        """
        if not active:
            return {}
        parts = [
            (self._adapters[name].identity, strength, list(self._adapters[name].components))
            for name, strength in active.items()
        ]
        return {"lora": parts, "lora.mode": self._mode.value}

    def set(self, active: Mapping[str, float]) -> None:
        """Make these adapters, and no others, take part from now on, in any mode.

        All or nothing: what fails in one component is taken back in all.
        """
        forget_scales()  # of the request before
        if list(active.items()) == list(self._active.items()):
            return
        done: list[str] = []
        try:
            for component in self._places:
                done.append(component)
                self._set(component, active)
        except BaseException:  # also Ctrl-C: half of a switch would make other pictures without a word
            with ExitStack() as undo:  # goes on where one of them fails
                for component in done:
                    undo.callback(self._set, component, self._active)
            raise
        self._active = dict(active)

    def _set(self, component: str, active: Mapping[str, float]) -> None:
        self._places[component].set(edits_of(component, self._adapters, active))


def open_adapters(
    config: LoraConfig,
    components: Sequence[Component],
    pipeline_class: type,
    world: World,
    sources: Mapping[str, Source],
    copied: Sequence[Loan] = (),
) -> Adapters:
    """Read every configured adapter and check it against the components, which are not touched yet.

    `sources`: the files that these came from; `copied`: what one component lends and another has as a copy. Raises
    UserError, naming the adapter and its keys.
    """
    modules = {component.name: component.module for component in components}
    adapters: dict[str, Adapter] = {}
    for one in config.adapters:
        try:
            adapters[adapter_name(one)] = read_adapter(
                Path(one.path), modules, components=one.components, pipeline_class=pipeline_class
            )
        except AdapterError as error:
            raise UserError(f"lora {adapter_name(one)!r}: {error}") from error
    for name, adapter in adapters.items():
        _refuse_copied(name, adapter, copied)
    used = {name for adapter in adapters.values() for name in adapter.components}
    places = {
        c.name: place_in(c.module, config.mode, world.device, sources[c.name]) for c in components if c.name in used
    }
    return Adapters(config, adapters, places)


def _refuse_copied(name: str, adapter: Adapter, copied: Sequence[Loan]) -> None:
    """A change of a module that two components share has to reach both."""
    for loan in copied:
        changed = adapter.components.get(loan.lender, {})
        if hit := next((weight for weight in changed if f"{weight}.".startswith(f"{loan.name}.")), None):
            raise UserError(
                f"lora {name!r} changes {loan.lender}.{hit}, which the {loan.borrower} has too, as a copy where the "
                f"{loan.lender} is sharded or offloaded; use placement.{loan.lender}.share=replicate rest=device"
            )


def place_in(module: nn.Module, mode: LoraMode, device: torch.device, source: Source) -> Place:
    """Where a module's adapters go, as its weights are placed now. They came from its files, unedited."""
    if mode is LoraMode.dynamic:
        return BesideLayers(module, device)
    if (offloader := offload.offloader_of(module)) is not None:
        return _MergedOnTheWay(offloader)
    return MergedWeights(module, base=_base_in(source, module), device=device)


def _base_in(source: Source, module: nn.Module) -> ReadBase | None:
    """None where only a library can make the weights of what the files hold."""
    try:
        return StoredWeights(checkpoint_of(module, source), tied_names(module)).read
    except FileError:
        return None


def recipe_of_lora(config: LoraConfig) -> dict[str, Any]:
    """What decides the pixels of prompts that choose no adapters of their own: dotted key -> value. Reads files."""
    recipe: dict[str, Any] = {}
    for one in config.adapters:
        if one.strength != 0:
            try:
                identity = adapter_identity(Path(one.path))
            except AdapterError as error:
                raise UserError(f"lora {adapter_name(one)!r}: {error}") from error
            recipe[f"lora.{adapter_name(one)}"] = [identity, one.strength, list(one.components)]
    return recipe | {"lora.mode": config.mode.value} if recipe else {}


@dataclass(frozen=True)
class _Merge:
    """An edit of a weight; equal for equal terms, so that resident blocks that do not change stay."""

    terms: Terms

    def __call__(self, weight: torch.Tensor) -> None:
        write_merged(weight, weight, self.terms)


class _MergedOnTheWay:
    """Merged into what came up of an offloaded component, at each fetch, on the device.

    The factors of the active adapters stay on the device, as they are stored: a copy from the host in every fetch would
    wait for all that is queued.
    """

    def __init__(self, offloader: offload.Offloaded) -> None:
        self._offloader = offloader
        aliases = offload.find_aliases(offloader.module)
        self._first_name = {other: name for name, others in aliases.items() for other in others}
        self._factors: dict[LowRank, LowRank] = {}

    def set(self, edits: Edits) -> None:
        changes = {change for terms in edits.terms.values() for change, _ in terms}
        with normal_mode():
            device = self._offloader.device
            factors = {change: self._factors.get(change) or on_device(change, device) for change in changes}
        merges = {}
        for name, terms in edits.terms.items():
            merges[self._first_name.get(name, name)] = _Merge(tuple((factors[change], w) for change, w in terms))
        self._offloader.edit(merges)
        self._factors = factors

    @property
    def device_bytes(self) -> int:
        """Of the factors on the device."""
        return sum(change.num_bytes for change in self._factors.values())
