"""Resume inside a picture: the log of a request's denoiser calls answers those that were made, the rest are computed.

[Note: why a log of calls is enough]
The pipeline's own code runs again from its start, with the same seed, so that all it computes between the denoiser's
calls (noise, scheduler state of any order, guidance, callbacks) comes out as it did, given the same results of those
calls. What a call drew from random generators is part of its result. A record answers a call only where the component
and every bit of its arguments are the same; where the two part, the log ends and the rest is computed.
"""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch

from runner.calls.boundary import Boundaries
from runner.calls.lockstep import Lockstep, PeerLeft
from runner.calls.randomness import generator_states, set_generators
from runner.calls.recorded import NotKept, fingerprint, pack, unpack
from runner.calls.stateful import State, state_of, what_changed, why_stateful
from runner.calls.steps import Steps
from runner.calls.turns import seconds_paused, this_turn
from runner.components.component import Component
from runner.components.resolver import enter
from runner.health.stderr import say
from runner.inputs.input_file import alike_text
from runner.output.call_log import MAX_WAITING, CallLog, Record
from runner.progress import Progress
from runner.request import Request
from runner.resume.duration import Duration, is_worth_a_log
from runner.rounds.rounds import Rounds
from weights.overrides import Overrides

CALLS_A_STEP = 2  # expected where nothing is known yet: one with the prompt, one without


class StoppedInside(Exception):
    """The job was asked to stop, and the request cannot finish in time. Its log, where it has one, is kept."""

    calls = 0  # that its log keeps

    def __str__(self) -> str:
        return f"stopped after {self.calls} calls, which its log keeps"


@dataclass(frozen=True)
class Resume:
    """What a request goes on with, and where its own calls go. `time_left`: seconds until the job is given up, None
    while nobody has asked it to stop. `always`: false where a short request is not worth a log."""

    log: CallLog
    time_left: Callable[[], float | None]
    always: bool = True


@dataclass
class Kept:
    """What this rank's logs gave, and took."""

    calls_replayed: int = 0
    seconds_replayed: float = 0.0  # that the replayed calls had taken
    calls_logged: int = 0
    bytes_logged: int = 0
    seconds_logging: float = 0.0  # of the compute thread, with replaying
    calls_left: int = 0  # in the log of a request that was left unfinished

    def __str__(self) -> str:
        parts = [(self.calls_replayed, "replayed"), (self.calls_logged, "logged")]
        return ", ".join(f"{number} calls {what}" for number, what in parts if number)


@dataclass
class _Inside:
    """What belongs to the request that is being made."""

    resume: Resume
    generator: torch.Generator | None
    kind: str
    wanted: bool | None  # whether its calls are written; None until `auto` knows how long it takes
    duration: Duration
    together: bool = True  # whether the ranks that share the call still have all answers
    held: list[tuple[dict[str, Any], list[memoryview]]] = field(default_factory=list)
    replayed: int = 0
    is_in_call: bool = False


class Replay:
    """Laid over the calls of the denoise stage's components, outermost: a call that is answered moves no weights.

    Other components run again: encoders take a second where a denoiser takes minutes, and decoders come last. Ranks
    that hold one copy of a component together, or make one request (`makes_together`), replay a call only where all of
    them have its answer: the first call that one of them has to compute is computed by all, and so are those after it.
    """

    def __init__(
        self,
        components: Sequence[Component],
        boundaries: Boundaries,
        device: torch.device,
        lockstep: Lockstep,
        progress: Progress,
        steps: Steps,
        *,
        makes_together: bool = False,
        rounds: Rounds | None = None,
    ) -> None:
        self.kept = Kept()
        self._boundaries, self._device = boundaries, device
        self._lockstep, self._progress = lockstep, progress
        self._overrides = Overrides()
        self._steps, self._rounds = steps, rounds
        self._components = [component for component in components if component.stage == "denoise"]
        # Also for those that are not sharded: they may call one that is.
        sharded = any(component.is_sharded for component in self._components)
        self._shares = lockstep.size > 1 and (sharded or makes_together)
        self._off: str | None = None  # why nothing is logged on this pipeline
        # The first call of a component may set up what it then only reads (tables of angles), or begin to keep state:
        # the second call shows which. Until then, nothing is written that would be of no use.
        self._called: set[str] = set()
        self._doubted: set[str] = set()
        self._seconds: dict[str, float] = {}  # that a request of a kind took
        self._making: ContextVar[_Inside | None] = ContextVar("_making", default=None)
        self._under_way: list[_Inside] = []  # several where requests take turns
        for component in self._components:
            inner = component.module._call_impl
            self._overrides.set(component.module, "_call_impl", functools.partial(self._call, component, inner))

    @property
    def _inside(self) -> _Inside | None:
        """Of the request that is being made in this context."""
        return self._making.get()

    def close(self) -> None:
        self._overrides.undo()

    @contextmanager
    def request(self, request: Request, resume: Resume, generator: torch.Generator | None) -> Iterator[None]:
        """Around the pipeline's own call. When it is left, however, what was logged is on the disk."""
        kind = alike_text(request.call)
        wanted = True if resume.always or not resume.log.is_at_end else self._is_worth(kind)
        inside = _Inside(resume, generator, kind, wanted, Duration(self._steps.of_this()))
        self._making.set(inside)
        self._under_way.append(inside)
        if (turn := this_turn()) is not None:
            turn.seconds_by_log = lambda: inside.duration.needed() if self._keeps(inside) else None
        for component in self._components:
            if wanted is not False and self._off is None and (reason := why_stateful(component.module)) is not None:
                self._turn_off(f"{component.name}: {reason}")
        self.kept.calls_left = 0
        try:
            yield
            if not inside.replayed:
                self._seconds[kind] = inside.duration.so_far
        except (StoppedInside, PeerLeft) as error:
            if isinstance(error, StoppedInside) and self._keeps(inside):
                inside.wanted = True  # also where it was not known yet whether it is worth it
                self._write_held(inside)
                error.calls = resume.log.number
            self.kept.calls_left += resume.log.number if resume.log.writes else 0
            raise
        finally:
            self._making.set(None)
            self._under_way.remove(inside)
            resume.log.close()
            self.kept.bytes_logged += resume.log.bytes_appended

    def _is_worth(self, kind: str) -> bool | None:
        return is_worth_a_log(self._seconds[kind]) if kind in self._seconds else None

    # One call.

    def _call(self, component: Component, compute: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        inside = self._inside
        if inside is None or inside.is_in_call:  # a call within a call belongs to the outer one
            return compute(*args, **kwargs)
        if self._rounds is not None:
            args, kwargs = self._rounds.there(args, kwargs)
        self._progress.doing(component.stage, component.name)
        self._stop_if_asked(inside)
        called = self._fingerprint(component, args, kwargs)
        record = self._answer(inside, called)
        if inside.together and self._shares:
            place = f"{component.stage}/{component.name}: replay"
            inside.together = not self._lockstep.any(record is None, place)
        if record is not None and inside.together:
            return self._replayed(inside, component, record)
        if record is not None:  # the ranks beside this one have to compute it
            inside.duration.calls.append(record.header["seconds"])
        keeps = called is not None and record is None and self._keeps(inside)
        inside.is_in_call = True
        try:
            if keeps:
                assert called is not None
                return self._computed(
                    inside, component, called, functools.partial(compute, *args, **kwargs), (args, kwargs)
                )
            return compute(*args, **kwargs)
        finally:
            inside.is_in_call = False

    def _fingerprint(self, component: Component, args: Any, kwargs: Any) -> str | None:
        inside = self._inside
        assert inside is not None
        if self._off is not None or (inside.resume.log.is_at_end and not self._keeps(inside)):
            return None
        try:
            return fingerprint(component.name, args, kwargs)
        except NotKept as error:
            self._turn_off(f"{component.name}: {error}")
            return None

    def _answer(self, inside: _Inside, called: str | None) -> Record | None:
        if called is None or (record := inside.resume.log.next()) is None:
            return None
        if record.header["call"] == called:
            return record
        inside.resume.log.refuse_last(f"{self._progress.component} is called with other values")
        return None

    def _replayed(self, inside: _Inside, component: Component, record: Record) -> Any:
        start = time.perf_counter()
        self._progress.calling(component.stage, component.name)
        with enter(self._boundaries.decisions[component.name].mode, self._device.type):
            output = unpack(record.header["output"], record.body, self._device)
        set_generators(record.header["drew"], self._device, inside.generator)
        inside.replayed += 1
        inside.duration.calls.append(record.header["seconds"])
        if inside.resume.log.writes:  # filler work replays what another rank counts
            self.kept.calls_replayed += 1
            self.kept.seconds_replayed += record.header["seconds"]
        self.kept.seconds_logging += time.perf_counter() - start
        return output

    def _computed(
        self, inside: _Inside, component: Component, called: str, compute: Callable[[], Any], inputs: Any
    ) -> Any:
        module, start = component.module, time.perf_counter() - seconds_paused()
        states, held = generator_states(self._device, inside.generator), state_of(module)
        before = time.perf_counter() - seconds_paused()
        output = compute()
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)
        seconds = time.perf_counter() - seconds_paused() - before
        now = generator_states(self._device, inside.generator)
        drew = {name: state for name, state in now.items() if state != states[name]}
        self.kept.seconds_logging += time.perf_counter() - seconds_paused() - start - seconds
        header = {"call": called, "component": component.name, "seconds": seconds, "drew": drew}
        kept = functools.partial(self._keep_computed, inside, component, header, output, inputs, held)
        if self._rounds is None:
            kept(None)
        else:
            self._rounds.after(kept)
        return output

    def _keep_computed(
        self,
        inside: _Inside,
        component: Component,
        header: dict[str, Any],
        output: Any,
        inputs: Any,
        held: State,
        waited: float | None,
    ) -> None:
        """Once the result is there: at once, or when the call's round is over, of which it took so many seconds. What
        it was called with may have been written to by then, and not by it: that is known before calls are put off."""
        start = time.perf_counter() - seconds_paused()
        try:
            if waited is None and fingerprint(component.name, *inputs) != header["call"]:
                raise NotKept("it writes into what it is called with")
            self._doubt(component, what_changed(held, state_of(component.module)))
            tree, body = pack(output, inputs)
        except NotKept as error:
            self._turn_off(f"{component.name}: {error}")
            return
        seconds = header["seconds"] + (waited or 0.0)
        inside.duration.calls.append(seconds)
        self._keep(inside, {**header, "seconds": seconds, "output": tree}, body)
        self.kept.seconds_logging += time.perf_counter() - seconds_paused() - start

    def _doubt(self, component: Component, changed: str | None) -> None:
        if changed is None:
            self._doubted.discard(component.name)
        elif component.name in self._called:
            raise NotKept(f"it keeps state in {changed}")
        else:
            self._doubted.add(component.name)
        self._called.add(component.name)

    # Whether to keep it.

    def _keeps(self, inside: _Inside) -> bool:
        return self._off is None and inside.wanted is not False and inside.resume.log.given_up is None

    def _keep(self, inside: _Inside, header: dict[str, Any], body: list[memoryview]) -> None:
        inside.held.append((header, body))
        if inside.wanted is None:
            inside.wanted = inside.duration.is_worth()
        if inside.wanted:
            self._write_held(inside)
        elif inside.wanted is False:
            inside.held.clear()

    def _write_held(self, inside: _Inside) -> None:
        if self._doubted:
            if sum(len(part) for _, body in inside.held for part in body) > MAX_WAITING:
                self._turn_off(
                    f"{', '.join(sorted(self._doubted))} set something up in its only call: it may keep state"
                )
            return
        log = inside.resume.log
        if log.number == 0 and inside.held:
            size = sum(map(len, inside.held[0][1]))
            log.ask_for_room(size * max(self._steps.total * CALLS_A_STEP, 1))
        for header, body in inside.held:
            log.append(header, body)
            self.kept.calls_logged += 1
        inside.held.clear()

    def _turn_off(self, reason: str) -> None:
        """For good: what was logged so far cannot stand for the calls either."""
        self._off = reason
        say(f"resume_inside: {reason}; no calls are logged, and a request that is cut short begins anew")
        for inside in self._under_way:
            inside.held.clear()
            inside.resume.log.drop(self._off)

    # Stopping.

    def _stop_if_asked(self, inside: _Inside) -> None:
        if this_turn() is not None:
            return  # the requests of a group share the time that is left: whoever serves them says which go on
        left = inside.resume.time_left()
        if left is not None and self._keeps(inside) and inside.duration.needed() > left:
            raise StoppedInside
