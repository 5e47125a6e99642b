"""Tiled decoding over the ranks of a team: each computes some of the tiles, and all of them put the picture together.

[Note: tiles] diffusers' `tiled_decode` cuts the latents, calls the decoder on each tile, and blends what it gave. It
runs as it is, twice. The first time each call of the decoder hands out a thing that nobody may look into; where the
code wants to blend, it is left. What was asked for by then are calls that cannot depend on each other: the ranks share
them out and exchange the results. The second time these are handed out, and the blending goes on. So every tile has the
bits that it has on one rank, and there is no list of classes. Where a tile is looked into before all are asked for, or
the decoder keeps a cache from call to call (video, frame by frame), every rank decodes all of them.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor

from runner.calls.lockstep import Lockstep
from runner.calls.randomness import generator_states, set_generators
from runner.components.component import Component
from runner.rounds.exchange import Parcel, exchange, received
from runner.rounds.signature import Spec, Unknown, signature_of
from runner.team import Team
from runner.trace.interval import Lane
from runner.trace.recorder import Recorder
from weights.agreement import gather
from weights.overrides import Overrides

Call = Callable[[], Any]


class _LookedInto(BaseException):
    """Of no kind that the decoding code could take for an error of its own."""


class _NotAsked:
    """What the decoder will give for a tile, the first time."""

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise _LookedInto

    @classmethod
    def __torch_function__(cls, *_: Any, **__: Any) -> NoReturn:
        raise _LookedInto

    __getattr__ = __getitem__ = __iter__ = __len__ = __bool__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = _refuse


@dataclass
class _Decoding:
    """One run of `tiled_decode`: results that are there, in the order of the calls, and calls that were asked for."""

    results: list[Tensor]
    calls: list[Call] = field(default_factory=list)
    given: int = 0
    reason: str | None = None  # why the calls are not shared out


class Tiles:
    """Laid over the decoders of a team's components that can decode in tiles; put on once."""

    def __init__(
        self,
        components: Sequence[Component],
        team: Team,
        lockstep: Lockstep,
        device: torch.device,
        recorder: Recorder | None = None,
    ) -> None:
        self.reasons: dict[str, str | None] = {}  # why every rank computes all tiles of a component, None where not
        self.decoded: dict[str, int] = {}  # tiles that this rank computed of those that were shared out
        self._team, self._lockstep, self._device = team, lockstep, device
        self._recorder, self._overrides = recorder or Recorder(), Overrides()
        self._decoding: ContextVar[_Decoding | None] = ContextVar("_decoding", default=None)
        for component in components:
            if callable(getattr(component.module, "tiled_decode", None)):
                self._install(component)

    def close(self) -> None:
        self._overrides.undo()

    def _install(self, component: Component) -> None:
        module: Any = component.module
        self.reasons[component.name] = reason = why_all(module)
        if reason is None:
            whole = functools.partial(self._decode, component, module.tiled_decode)
            self._overrides.set(module, "tiled_decode", functools.update_wrapper(whole, module.tiled_decode))
            inner = module.decoder._call_impl
            self._overrides.set(module.decoder, "_call_impl", functools.partial(self._call, inner))

    def _decode(self, component: Component, tiled_decode: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        name = component.name
        if self.reasons[name] is None and self._decoding.get() is None:
            first = _Decoding([])
            self._run(first, tiled_decode, args, kwargs)
            if len(first.calls) < 2 or first.reason is not None:
                self.reasons[name] = first.reason
            elif (results := self._shared_out(component, first.calls)) is not None:
                second = _Decoding(results)
                output = self._run(second, tiled_decode, args, kwargs)
                if not second.calls:
                    return output
                self.reasons[name] = "it looks into a tile before it has asked for all"
        return tiled_decode(*args, **kwargs)

    def _run(self, decoding: _Decoding, tiled_decode: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """What it gives; None where it was left in the middle."""
        token = self._decoding.set(decoding)
        try:
            return tiled_decode(*args, **kwargs)
        except _LookedInto:
            return None
        finally:
            self._decoding.reset(token)

    def _call(self, inner: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        decoding = self._decoding.get()
        if decoding is None:
            return inner(*args, **kwargs)
        if decoding.given < len(decoding.results):
            result, decoding.results[decoding.given] = decoding.results[decoding.given], _NOTHING
            decoding.given += 1
            return result
        try:
            signature_of(args, kwargs)
        except Unknown as error:
            decoding.reason = f"its decoder: {error}"
            raise _LookedInto from None
        decoding.calls.append(functools.partial(inner, *args, **kwargs))
        return _NotAsked()

    def _shared_out(self, component: Component, calls: Sequence[Call]) -> list[Tensor] | None:
        """The results of all calls, of which this rank makes its part; None where they cannot be shared out, which is
        noted. Collective."""
        team, place = self._team, f"{len(calls)} tiles of {component.name}"
        before = generator_states(self._device)
        mine = range(team.place, len(calls), team.size)
        made = {index: self._computed(calls[index]) for index in mine}
        if component.is_sharded:  # ranks that share its weights make as many calls
            for _ in range(-(-len(calls) // team.size) - len(mine)):
                self._computed(calls[-1])
        odd = generator_states(self._device) != before or any(type(result) is not Tensor for result in made.values())
        # Also the meeting: a rank that failed at a tile is missed here, and not in a collective.
        with self._recorder.range("meet", Lane.wait, component=component.name):
            is_odd = self._lockstep.any(odd, place)
        if is_odd:
            set_generators(before, self._device)
            self.reasons[component.name] = "its decoder draws random numbers, or gives more than a tensor"
            return None
        self.decoded[component.name] = self.decoded.get(component.name, 0) + len(mine)
        with self._recorder.range("exchange", Lane.exchange, component=component.name) as under_way:
            parcels = self._exchanged(made, len(calls))
            assert team.group is not None
            under_way.num_bytes = received(parcels, team.group)
        return [parcel.value for parcel in parcels if parcel.value is not None]

    def _exchanged(self, made: Mapping[int, Tensor], number: int) -> list[Parcel]:
        """All `number` results, of which this rank made some. Only who made one knows what it is like."""
        team, specs = self._team, dict[int, Spec]()
        for theirs in gather({index: Spec.of(result) for index, result in made.items()}, team.control):
            specs |= theirs
        parcels = [Parcel(index % team.size, specs[index], made.get(index)) for index in range(number)]
        assert team.group is not None
        exchange(parcels, team.group)
        return parcels

    def _computed(self, call: Call) -> Any:
        token = self._decoding.set(None)  # a decoder within the decoder is its own
        try:
            return call()
        finally:
            self._decoding.reset(token)


_NOTHING = torch.empty(0)  # in the place of a result that was handed out


def why_all(module: Any) -> str | None:
    """Why every rank has to compute all tiles of this module, as far as its source tells."""
    if not isinstance(getattr(module, "decoder", None), torch.nn.Module):
        return "it has no decoder of its own"
    if "cache" in inspect.getsource(type(module).tiled_decode):
        return "its decoder keeps a cache from call to call"
    return None
