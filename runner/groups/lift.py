"""Whose turn it is: the requests of a group share each pass over the weights, served as a lift serves its floors.

[Note: the lift] Each turn waits for a place: a component, or one of its blocks. While any are inside a component, the
next block round the ring that one of them waits for comes up, and all that wait for it run it before the next one.
When none is inside, it is the turn of the first component, in the order in which a pipeline works, that anyone waits
for: all encode, then all denoise, then each decodes, and with two denoisers all are done with the first before the
second. A call of a component that moves no weights, or is a decoder's, is not interrupted.

Ranks that share weights serve alike, since their turns are alike and wait alike; they meet before each sweep of a
sharded component (runner/groups/meetings.py).
"""

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

from torch import nn
from torch.distributed.fsdp import FSDPModule

import sharding
from runner.calls.lockstep import Lockstep, PeerLeft, left
from runner.calls.moving import MovingBlock, moving_blocks
from runner.calls.switches import Switch
from runner.calls.turns import BEGIN, JOIN, START, Abandoned, Place, Turn, this_turn
from runner.components.component import Component
from runner.groups.grace import Grace
from runner.groups.meetings import Meetings
from runner.groups.meter import Meter
from runner.resume.replay import StoppedInside
from runner.trace.recorder import Recorder
from weights.modes import normal_mode
from weights.overrides import moves_no_weights

STAGES = ("encode", "denoise", "decode")
_DENOISE = STAGES.index("denoise")


class Lift:
    """Serves groups of turns over the components of one pipeline; its hooks on their blocks stay until `close`."""

    def __init__(self, components: Sequence[Component], lockstep: Lockstep, recorder: Recorder | None = None) -> None:
        self._lockstep, self._recorder = lockstep, recorder or Recorder()
        self._order = {component.name: number for number, component in enumerate(components)}
        self._shared: set[int] = set()  # components inside whose calls ranks exchange something, by their numbers
        self._roots: dict[int, nn.Module] = {}  # of those that FSDP gathers
        self._blocks: dict[tuple[int, int], MovingBlock] = {}
        self._handles: list[Any] = []
        self._place = START
        self._meter: Meter | None = None
        self._turns: list[Turn] = []
        self._is_one_request = False  # whose calls share a pass, outside a group
        self._meetings = Meetings(lockstep, self._recorder)
        for number, component in enumerate(components):
            self._install(number, component)

    @property
    def moves_weights(self) -> bool:
        """Whether requests that are made together share anything."""
        return bool(self._blocks)

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _install(self, number: int, component: Component) -> None:
        if component.is_called_together:
            self._shared.add(number)
        if isinstance(component.module, FSDPModule):
            self._roots[number] = component.module
        for index, block in enumerate(moving_blocks(component)):
            self._blocks[number, index] = block

            def gate(*_: Any, place: tuple[int, int] = (number, index)) -> None:
                self._at_block(*place)

            # Before FSDP's own hook and the offloader's wrapper, which bring weights up.
            self._handles.append(block.module.register_forward_pre_hook(moves_no_weights(gate), prepend=True))

    # In the turns.

    def at_call(self, turn: Turn, stage: str, component: str, where: str) -> None:
        """A call of the component is about to begin; returns when it may."""
        request = turn.parent or turn
        self._grace.calls(request, stage)
        if not self._grace.allows(request, [one for one in self._requests if one.has_begun and not one.is_over]):
            raise StoppedInside
        turn.place, turn.where = Place(STAGES.index(stage), self._order[component]), where
        turn.stands = self._lockstep.stands()
        if turn.place != self._place or turn.place.component in self._shared:
            turn.wait()

    def after_call(self, turn: Turn) -> None:
        """The call is over, and the pipeline's own code goes on."""
        self._switch.to_glue(turn.kept)

    def pausing(self) -> None:
        """Of what the turn has under way."""
        self._recorder.pause()

    def going_on(self) -> None:
        self._recorder.go_on()

    def come_to(self, turn: Turn, stage: str, component: str) -> None:
        """See `Server`."""
        turn.place = Place(STAGES.index(stage), self._order[component])

    def together(self, calls: Sequence[Callable[[], Any]], switch: Switch) -> list[Any]:
        """Make calls of one component and one request in one pass over its weights, beside those of the other requests
        of its group; what they gave. Where any raised, the first such error is raised when all are over."""
        turn = this_turn()
        if turn is None:
            return self._serve_one_request(calls, switch)
        turn.branches = branches = [Turn(turn.index, call, self, parent=turn) for call in calls]
        turn.place, turn.has_begun = turn.place._replace(block=JOIN), turn.has_begun or turn.place.stage >= _DENOISE
        turn.stands = self._lockstep.stands()
        self._turns += branches
        try:
            turn.wait()
        finally:
            turn.branches = []
            self._turns = [one for one in self._turns if one.parent is not turn]
            turn.seconds += sum(branch.seconds for branch in branches)
        return [branch.outcome() for branch in branches]

    def _serve_one_request(self, calls: Sequence[Callable[[], Any]], switch: Switch) -> list[Any]:
        over: dict[int, tuple[Any, BaseException | None]] = {}

        def ended(turn: Turn) -> None:
            over[turn.index] = turn.result, turn.error

        self._is_one_request = True
        try:
            self.serve(calls, ended, switch, Grace(lambda: None))
        finally:
            self._is_one_request = False
        for _, error in over.values():
            if error is not None:
                raise error
        return [over[index][0] for index in range(len(calls))]

    def _at_block(self, component: int, block: int) -> None:
        turn = this_turn()
        if turn is None or turn.place.component != component:  # outside a group, or within another component's call
            return
        turn.place = turn.place._replace(block=block)
        if turn.place != self._place:
            turn.wait()

    # Between the turns.

    def serve(
        self,
        bodies: Sequence[Callable[[], Any]],
        ended: Callable[[Turn], None],
        switch: Switch,
        grace: Grace,
        meter: Meter | None = None,
    ) -> None:
        """Run the bodies as turns to their ends, each told of at once by `ended`, while the others wait.

        Turns that the job's end leaves no time for (`grace`) raise StoppedInside; those whose request failed on another
        rank raise PeerLeft. What `ended` raises, and what no request may raise (Ctrl-C), ends the group. A
        `meter` measures the passes, which then go without prefetching what is gathered.
        """
        self._turns = [Turn(index, body, self) for index, body in enumerate(bodies)]
        self._meetings.forget()
        self._switch, self._ended, self._grace = switch, ended, grace
        self._place, self._meter = START, meter
        try:
            while True:
                self._give_back()
                waiting = [turn for turn in self._turns if not (turn.is_over or turn.open_branches)]
                place = self._next(waiting) if waiting else None
                if self._meetings.is_due(place, self._shared, self._is_one_request) and not self._meet():
                    continue
                if place is None:
                    break
                self._serve_at(place)
            if meter is not None:
                meter.end()
        finally:
            self._abandon()

    def _next(self, waiting: Sequence[Turn]) -> Place:
        inside = sorted({turn.place for turn in waiting if turn.place.is_inside})
        if inside:
            return next((place for place in inside if place > self._place), inside[0])
        return min(turn.place for turn in waiting)

    def _serve_at(self, place: Place) -> None:
        self._place = place
        block = self._blocks.get((place.component, place.block))
        turns = [turn for turn in self._turns if not (turn.is_over or turn.open_branches) and turn.place == place]
        if self._meter is not None and place.block >= BEGIN:
            self._meter.has_denoised |= place.stage == _DENOISE
        if self._meter is not None and block is not None:
            self._meter.begin(place, len({turn.parent or turn for turn in turns}))
        try:
            for turn in turns:
                if self._lockstep.size == 1:
                    self._give_back()
                if not turn.is_over:
                    self._resume(turn, block)
        finally:
            if block is not None:
                with normal_mode():
                    block.let_go()
        if self._meter is not None and block is not None:
            self._meter.paused()

    def _resume(self, turn: Turn, block: MovingBlock | None) -> None:
        place = turn.place
        self._switch.to(turn.kept, is_inside=place.is_inside)
        if place.is_inside and place.component in self._roots:
            sharding.resume_forward(self._roots[place.component])
        turn.has_begun |= place.stage >= _DENOISE
        if block is None:
            turn.resume()
        else:
            error = self._bring_up(block)
            self._run_block(turn, error)
        if turn.is_over:
            self._tell(turn)

    def _bring_up(self, block: MovingBlock) -> Exception | None:
        """Have the block up for all that wait. What fails is for the one whose turn it is; the next one tries again."""
        start = perf_counter()
        try:
            with normal_mode():
                block.keep()
                if self._meter is not None:
                    block.bring_up()
                    self._meter.await_device()
        except Exception as error:  # of any kind: the store's, an edit's, the allocator's
            return error
        finally:
            if self._meter is not None:
                self._meter.waited(perf_counter() - start)
        return None

    def _run_block(self, turn: Turn, error: Exception | None) -> None:
        turn.resume(error)
        if self._meter is not None:
            self._meter.await_device()
            self._meter.computed()

    def _throw(self, turn: Turn, error: BaseException) -> None:
        for branch in turn.open_branches:
            self._throw(branch, Abandoned())
        self._switch.to(turn.kept, is_inside=turn.place.is_inside)
        turn.resume(error)
        if not turn.is_over:  # the pipeline's own code took it for an error of its own
            turn.resume(Abandoned())
            turn.error = error
        if not isinstance(error, Abandoned):
            self._tell(turn)

    def _abandon(self) -> None:
        """Those that are not over, where something ends the group; what is blamed is where the turn that ran is."""
        ran = self._switch.running
        for turn in self._turns:
            if not turn.is_over:
                self._throw(turn, Abandoned())
        if ran is not None:
            self._switch.to(ran, is_inside=True)
        self._turns = []

    def _tell(self, turn: Turn) -> None:
        if turn.error is not None and not isinstance(turn.error, Exception):  # Ctrl-C is for the whole job
            raise turn.error
        if turn.parent is not None:
            return
        turn.ended_as = left(turn.error) if turn.error and not isinstance(turn.error, PeerLeft) else "the end"
        self._ended(turn)
        self._grace.over(turn)
        turn.result = turn.error = None  # pixels, and the frames of a traceback

    def _give_back(self) -> None:
        if self._grace.left() is not None:
            for turn in self._requests:
                if not (turn.is_over or turn.has_begun or self._shares_its_call(turn)):
                    self._throw(turn, StoppedInside())

    def _shares_its_call(self, turn: Turn) -> bool:
        """Whether other ranks are inside the same call, and need this one there."""
        if self._lockstep.size == 1:
            return False
        return any(one.place.is_inside and one.place.component in self._shared for one in (turn, *turn.open_branches))

    @property
    def _requests(self) -> list[Turn]:
        return [turn for turn in self._turns if turn.parent is None]

    def _meet(self) -> bool:
        """With the other ranks. Those whose places differ leave, everywhere; whether none did."""
        gone = self._meetings.hold(self._requests)
        for turn, error in gone.items():
            if not turn.is_over:
                self._throw(turn, error)
        return not gone
