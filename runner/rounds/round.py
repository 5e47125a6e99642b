"""The calls of one request whose results nobody has needed yet. See [Note: rounds] in runner/rounds/rounds.py."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_unflatten

from runner.calls.lockstep import Lockstep, PeerLeft
from runner.calls.turns import this_turn
from runner.components.component import Component
from runner.rounds.deferred import Deferred, Later, become, deferred_in, there
from runner.rounds.exchange import Parcel, exchange, received
from runner.rounds.glue import Function, Need, Shapes
from runner.rounds.learning import Knowledge, Learned, described
from runner.rounds.leaves import leaves_of
from runner.rounds.round_figures import RoundFigures
from runner.rounds.signature import Spec, Unknown, signature_of
from runner.rounds.snapshot import Snapshot, modes_of_now
from runner.trace.interval import Lane
from runner.trace.recorder import Recorder
from weights.agreement import Group, rank_in, size_of

Compute = Callable[..., Any]
Together = Callable[[Sequence[Callable[[], Any]]], list[Any]]


def _one_by_one(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    return [call() for call in calls]


class ResultsDiffer(PeerLeft):
    """A call did not give what the first one of its kind gave. All ranks leave, and make the request again."""


@dataclass
class Shared:
    """What all rounds of a pipeline go by.

    `team`: the ranks that make one request; `group`: those of them that share out its calls, to exchange results on
    their device. `lockstep`: all that keep in step with this rank, its team among them; they meet
    before results are exchanged. `sharded`: the components that ranks call together; `moving`: those whose weights
    come up anew at each call; `together` makes calls of one in a single pass; `recorder` is told what meetings and
    exchanges take."""

    lockstep: Lockstep
    device: torch.device
    team: Group = None
    group: Group = None
    sharded: frozenset[str] = frozenset()
    moving: frozenset[str] = frozenset()
    together: Together = _one_by_one
    shapes: Shapes = field(default_factory=Shapes)
    figures: RoundFigures = field(default_factory=RoundFigures)
    recorder: Recorder = field(default_factory=Recorder)

    @property
    def size(self) -> int:
        return size_of(self.group)

    @property
    def rank(self) -> int:
        return rank_in(self.group)

    @property
    def is_mixed(self) -> bool:
        """Whether ranks that make other requests keep in step too."""
        return self.lockstep.size > size_of(self.team)


@dataclass(eq=False)
class Call:
    """One of a round. `owner`: whose it is; None where every rank makes it. `leaves` of its result, once it is made."""

    learned: Learned
    compute: Callable[[], Any]
    owner: int | None = None
    leaves: list[Any] | None = None
    results: dict[int, Deferred] = field(default_factory=dict)
    is_other: bool = False  # it did not give what was learned

    @property
    def places(self) -> list[int]:
        """Of the tensors among the leaves, each once."""
        learned = self.learned
        return [
            place
            for place, (leaf, first) in enumerate(zip(learned.leaves, learned.first, strict=True))
            if isinstance(leaf, Spec) and first == place
        ]

    def hand_out(self, round_: "Round") -> Any:
        self.results = {place: Deferred(self.learned.leaves[place], round_) for place in self.places}
        leaves = [
            self.results[first] if isinstance(leaf, Spec) else leaf
            for leaf, first in zip(self.learned.leaves, self.learned.first, strict=True)
        ]
        return tree_unflatten(leaves, self.learned.tree)

    def take(self, output: Any) -> bool:
        """What it gave; whether that is what was learned."""
        tree, kinds, self.leaves = described(output)
        self.is_other = tree != self.learned.tree or kinds != self.learned.leaves
        return not self.is_other


class Round:
    """The calls of one request whose results nobody has needed yet, and what was put off since."""

    def __init__(self, shared: Shared, known: Knowledge, generator: torch.Generator | None) -> None:
        self.known = known
        self._shared, self._generator = shared, generator
        self._component: Component | None = None
        self._calls: list[Call] = []
        self._later: list[Later] = []
        self._after: list[Callable[[float | None], None]] = []

    # A call.

    def call(self, component: Component, compute: Compute, args: Any, kwargs: Any, reason: str | None) -> Any:
        """`reason`: why this call may not be another rank's."""
        name = component.name
        deferred = deferred_in((args, kwargs))
        if self._calls and (component is not self._component or deferred):
            self.end(f"an argument of {name}")
        if deferred:
            args, kwargs = there((args, kwargs))
        self._component = component
        reason, signature = reason or self.known.serial.get(name), None
        if reason is None:
            try:
                signature = signature_of(args, kwargs)
            except Unknown as error:
                reason = str(error)
        learned = None if reason else self.known.calls.get((name, signature))
        if not self._all(learned is not None, f"a call of {name}"):
            if reason is not None:
                return self._alone(reason, compute, args, kwargs)
            return self._learn(component, signature, compute, (args, kwargs))
        assert learned is not None
        self._end_before_other_blocks(learned)
        call = Call(learned, partial(compute, *args, **kwargs))
        modes = modes_of_now(self._shared.device.type)
        if self.known.widest.get(name, 1) > 1 and (modes or not self._meets_before_calls):
            call.owner = len(self._calls) % self._shared.size
        is_mine = call.owner == self._shared.rank
        if is_mine and modes and self._is_better_later:  # called with what it is called with now
            args, kwargs = Snapshot().of((args, kwargs))
            call.compute = modes.around(partial(compute, *args, **kwargs))
        elif is_mine or call.owner is None:
            output = call.compute()
            if not call.take(output) and (call.owner is None or self._shared.group is None):
                del self.known.calls[name, signature]  # every rank sees it
                self.end("a result of another kind")
                return output
        self._calls.append(call)
        return call.hand_out(self)

    @property
    def _is_better_later(self) -> bool:
        """Where several calls of this rank can share a pass over the weights. And where ranks that make other requests
        are to be in the same calls: made at once, one rank would be in a call while the next waits before its own."""
        assert self._component is not None
        name = self._component.name
        shares_pass = name in self._shared.moving and self.known.widest.get(name, 1) > self._shared.size
        return shares_pass or self._meets_before_calls

    @property
    def _meets_before_calls(self) -> bool:
        assert self._component is not None
        return self._shared.is_mixed and self._component.name in self._shared.sharded

    def _end_before_other_blocks(self, learned: Learned) -> None:
        assert self._component is not None
        if (
            self._calls
            and self._component.name in self._shared.sharded
            and learned.blocks != self._calls[0].learned.blocks
        ):
            self.end("it runs other blocks")

    def _alone(self, reason: str, compute: Compute, args: Any, kwargs: Any) -> Any:
        """A call that every rank makes, and whose result is there at once."""
        assert self._component is not None
        name = self._component.name
        self.end(reason)
        self._shared.figures.serial(name, reason)
        output = compute(*args, **kwargs)
        self._all(False, f"what is known of a call of {name}")
        return output

    def _all(self, flag: bool, place: str) -> bool:
        """Whether it is so here, and on the ranks that make other requests and keep in step: those have prompts of
        other lengths, and all make as many calls of what they share."""
        shared = self._shared
        assert self._component is not None
        if shared.is_mixed and (shared.group is not None or self._meets_before_calls):
            return not self._any(not flag, place)
        return flag

    def _learn(self, component: Component, signature: Hashable, compute: Compute, inputs: Any) -> Any:
        name = component.name
        made = partial(compute, *inputs[0], **inputs[1])
        output = self.known.learn(component, signature, made, inputs, self._shared.device, self._generator)
        learned = self.known.calls.get((name, signature))
        if not self._all(learned is not None, f"what is known of a call of {name}"):
            self.end(self.known.serial.get(name, "it set something up"))
            return output
        assert learned is not None
        self._end_before_other_blocks(learned)
        call = Call(learned, lambda: output)
        call.take(output)
        self._calls.append(call)
        return call.hand_out(self)

    # What the glue does meanwhile.

    def put_off(self, function: Function, args: Any, kwargs: Any, needs: Need) -> Any:
        if not self._calls:
            return NotImplemented
        inputs = (args, kwargs)
        mixes = needs is Need.LATER_WITH_OTHERS or _has_plain(inputs)
        if mixes and not self._may_widen:
            return NotImplemented
        if "out" in kwargs or (results := self._shared.shapes.of(function, args, kwargs, self._shared.device)) is None:
            return NotImplemented
        args, kwargs = Snapshot().of(inputs) if mixes else inputs
        later = Later(function, args, kwargs, results, self)
        self._later.append(later)
        return later.results

    @property
    def _may_widen(self) -> bool:
        """Whether another call is expected before a result is needed. Arithmetic is put off only then: it would end
        most rounds at once, and costs more to put off than it costs."""
        assert self._component is not None
        is_learning = self._calls[-1].owner is None
        widest = self.known.widest.get(self._component.name, 0)
        return len(self._calls) < widest or (is_learning and widest == 0)

    # The end.

    def after(self, kept: Callable[[float | None], None]) -> None:
        """Call this when the last call's result is there: now, or at the end, with the seconds that it took then."""
        if self._calls:
            self._after.append(kept)
        else:
            kept(None)

    def end(self, why: str) -> None:
        """Have all results there, on all ranks."""
        if not self._calls:
            return
        calls, self._calls = self._calls, []
        later, self._later = self._later, []
        after, self._after = self._after, []
        component, begun = self._component, perf_counter()
        assert component is not None
        name = component.name
        self.known.widest[name] = max(self.known.widest.get(name, 0), len(calls))
        shared_out = [call for call in calls if call.owner is not None]
        crossed = self._settle(shared_out, len(calls)) if shared_out else 0
        seconds = perf_counter() - begun
        self._shared.figures.round(name, len(calls), len(shared_out), crossed, seconds, why)
        for call in calls:
            assert call.leaves is not None
            for place, deferred in call.results.items():
                become(deferred, call.leaves[place])
        for one in later:
            one.run()
        for kept in after:
            kept(seconds / len(calls))

    def abandon(self) -> None:
        """The request is over: nobody needs what is pending."""
        self._calls, self._later, self._after = [], [], []

    def _settle(self, calls: Sequence[Call], width: int) -> int:
        """Have the results of calls that are shared out; how many bytes crossed."""
        assert self._component is not None
        self._make_put_off(calls)
        is_other = any(call.is_other for call in calls)
        if self._shared.group is not None or self._meets_before_calls:  # part here, and not in a collective
            name = self._component.name
            is_other = self._any(is_other, f"{len(calls)} of {width} calls of {name} in a round, shared out")
        if is_other:
            self._leave()
        if self._shared.group is None:
            return 0
        parcels = {
            (call, p): Parcel(call.owner or 0, call.learned.leaves[p], call.leaves[p] if call.leaves else None)
            for call in calls
            for p in call.results
        }
        with self._shared.recorder.range("exchange", Lane.exchange, component=self._component.name) as under_way:
            crossed = exchange(list(parcels.values()), self._shared.group)
            under_way.num_bytes = received(list(parcels.values()), self._shared.group)
        for call in calls:
            call.leaves = list(call.leaves or call.learned.leaves)
        for (call, p), parcel in parcels.items():
            assert call.leaves is not None
            call.leaves[p] = parcel.value
        return crossed

    def _any(self, flag: bool, place: str) -> bool:
        self._come_to_component()
        assert self._component is not None
        if this_turn() is not None:  # it pauses here, and whoever serves it meets the other ranks
            return self._shared.lockstep.any(flag, place)
        with self._shared.recorder.range("meet", Lane.wait, component=self._component.name):
            return self._shared.lockstep.any(flag, place)

    def _make_put_off(self, calls: Sequence[Call]) -> None:
        """Those of this rank that wait, and as many more as another rank makes that shares the weights."""
        shared = self._shared
        assert self._component is not None
        mine = [call for call in calls if call.owner == shared.rank and call.leaves is None]
        missing = 0
        if self._component.name in shared.sharded:
            missing = -(-len(calls) // shared.size) - sum(call.owner == shared.rank for call in calls)
        computes = [call.compute for call in (*mine, *[calls[-1]] * missing)]
        self._come_to_component()
        made = shared.together(computes) if len(computes) > 1 else _one_by_one(computes)
        for call, output in zip(mine, made, strict=False):
            call.take(output)

    def _come_to_component(self) -> None:
        """A rank may get to the end of a round without a call of its own: in a group, its turn waits where the others
        do."""
        if (turn := this_turn()) is not None and self._component is not None:
            turn.server.come_to(turn, self._component.stage, self._component.name)

    def _leave(self) -> None:
        assert self._component is not None
        name, reason = self._component.name, "a call did not give what the first one of its kind gave"
        self.known.serial[name] = reason
        told = f"{name}: {reason}; its calls are made by every rank from now on"
        raise ResultsDiffer(told)


def _has_plain(values: Any) -> bool:
    return any(isinstance(leaf, Tensor) and type(leaf) is not Deferred for leaf in leaves_of(values))
