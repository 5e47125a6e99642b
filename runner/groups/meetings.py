"""Where the ranks that share weights meet while a group is served: before each sweep of a sharded component, with the
places of all turns. Turns whose places differ leave on all ranks, and the ranks meet again, so that what follows is the
same on all. A turn may also ask the other ranks a question, between two of its calls: its answer comes with the places.
"""

from collections.abc import Collection, Sequence

from runner.calls.lockstep import Lockstep, PeerLeft, TeamDiffers
from runner.calls.turns import BEGIN, VOTE, Place, Turn
from runner.trace.interval import Lane
from runner.trace.recorder import Recorder


class Meetings:
    """Of one lift."""

    def __init__(self, lockstep: Lockstep, recorder: Recorder) -> None:
        self._lockstep, self._recorder = lockstep, recorder
        self._settled: set[Turn] = set()  # over on all ranks, however it ended on each

    def forget(self) -> None:
        """The turns of the last group."""
        self._settled.clear()

    def is_due(self, place: Place | None, shared: Collection[int], is_one_request: bool) -> bool:
        """Before the turns at `place` go on, or, with None, at the end of the group. `shared`: the components inside
        whose calls ranks exchange something; `is_one_request`: calls of one, whose ranks meet when its round ends."""
        if self._lockstep.size == 1:
            return False
        if place is None:
            return not is_one_request
        return place.block == VOTE or (place.block == BEGIN and place.component in shared)

    def hold(self, requests: Sequence[Turn]) -> dict[Turn, PeerLeft | TeamDiffers]:
        """Compare the places of all turns on all ranks: those that differ, and with what they are to leave."""
        mine = [(self._status(turn), {} if turn.is_over else turn.stands) for turn in requests]
        gone: dict[Turn, PeerLeft | TeamDiffers] = {}
        with self._recorder.range("meet", Lane.wait):
            compared = self._lockstep.compare(mine)
        for turn, places in zip(requests, compared, strict=True):
            if _votes(turn) and set(places.values()) <= {_vote(turn, True), _vote(turn, False)}:
                turn.flag = _vote(turn, True) in places.values()
            elif left := self._lockstep.leaves(places):
                gone[turn] = left
        self._settled |= set(gone)
        return gone

    def _status(self, turn: Turn) -> str:
        if turn in self._settled:
            return ""
        if not turn.is_over:
            # No meeting is held while any turn is inside a call: its branches all wait for the same one to begin.
            waits = next(iter(turn.open_branches), turn)
            return _vote(turn, turn.flag) if _votes(turn) else waits.where
        return turn.ended_as


def _votes(turn: Turn) -> bool:
    return not turn.is_over and turn.place.block == VOTE


def _vote(turn: Turn, flag: bool | None) -> str:
    return f"{turn.where}: {flag}"
