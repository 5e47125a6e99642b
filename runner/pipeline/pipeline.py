"""Calls a stock diffusers pipeline, unmodified, over components that are placed."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from typing import Any

import torch

import offload
import sharding
from runner.calls.block_ranges import record_blocks
from runner.calls.boundary import Boundaries
from runner.calls.lockstep import END, Lockstep
from runner.calls.moving import moving_blocks
from runner.calls.randomness import set_global_generators
from runner.calls.steps import Steps
from runner.calls.switches import Switch
from runner.calls.trial import Compared, Parity, Trial
from runner.calls.turns import Turn, this_turn
from runner.calls.witness import Witness
from runner.components.context import context_of
from runner.components.groups import Groups
from runner.components.load import Loading
from runner.components.resolver import Decision, ExecutionMode, enter, resolve
from runner.components.stages import components_of
from runner.config import Leave, LoraConfig
from runner.errors import UserError
from runner.groups.alone import why_alone
from runner.groups.grace import Grace
from runner.groups.lift import Lift
from runner.groups.meter import Meter
from runner.inputs.arguments import arguments_of
from runner.inputs.decode import decoded
from runner.inputs.input_file import Form, files_in
from runner.pipeline.adapters import Adapters
from runner.pipeline.shell import own_shell, with_own_guiders
from runner.progress import Progress
from runner.request import Request
from runner.resume.replay import Replay, Resume
from runner.rounds.round import Shared
from runner.rounds.rounds import Rounds
from runner.rounds.tiles import Tiles
from runner.trace.clock import clock_for
from runner.trace.recorder import Details, Recorder
from runner.world import World
from weights.overrides import Overrides


class WrittenOutsideInferenceMode(RuntimeError):
    """A component keeps its state in tensors that the pipeline's own code made, such as a cache of keys and values."""


class Pipeline:
    """A stock pipeline whose components are placed, and whose calls run each component in the mode decided for it.

    `groups` says which ranks keep in step; `loadings` how each component came in.
    """

    def __init__(
        self,
        stock: Any,
        world: World,
        leave: Leave = Leave.component,
        *,
        loadings: Mapping[str, Loading] | None = None,
        groups: Groups | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.stock = stock
        self.world = world
        self.loadings = dict(loadings or {})
        self.progress = progress or Progress(world.rank)
        self.adapters = Adapters(LoraConfig(), {}, {})
        self.components = components_of(stock)
        self._groups = groups or Groups()
        self._witness = Witness(world.team.size, world.device) if world.team.size > 1 else None
        self.lockstep = Lockstep(self._groups.in_step, self._witness)
        decisions = resolve(self.components, leave)
        self.recorder, self._overrides = Recorder(clock_for(world.device)), Overrides()
        self._steps = Steps(stock, self._overrides, self.progress)
        self._boundaries = Boundaries(
            self.components, decisions, world.device.type, self.lockstep, self.progress, self.recorder, self._steps
        )
        self._observe_weights()
        self._block_hooks: list[Any] = []
        team = world.team
        laid_over = (self.components, team, self.lockstep, world.device, self.recorder)
        self.tiles = Tiles(*laid_over) if team.size > 1 else None
        self._lift: Lift | None = None
        self.rounds = self._lay_rounds()
        self._after = 0.0  # seconds that decoding and writing take, the most that was seen in a group
        self.group: dict[str, Any] = {}  # how many requests are made together, and why, for the report
        self.replay: Replay | None = None
        self.parities: Sequence[Parity] = ()  # of components whose tokens ranks share out, as far as they were compared
        self.arguments = arguments_of(type(stock))

    def _lay_rounds(self) -> Rounds | None:
        """Over the components whose independent calls may be shared out over the team, or share a pass over moving
        weights; None where there is neither."""
        team = self.world.team
        moving = frozenset(component.name for component in self.components if moving_blocks(component))
        if self.why_alone is not None:
            moving = frozenset()  # a call that is put off would find the model as the next one wants it
        if team.guidance == 1 and not moving:
            return None
        shared = Shared(
            self.lockstep,
            self.world.device,
            team.control,
            team.guidance_group,
            sharded=frozenset(one.name for one in self.components if one.is_called_together and self.lockstep.size > 1),
            moving=moving,
            together=self._make_calls_together,
            recorder=self.recorder,
        )
        return Rounds(self.components, shared, self.stock)

    def _make_calls_together(self, calls: Sequence[Callable[[], Any]]) -> list[Any]:
        """Calls of one component that are put off, in one pass over its weights. Each is a call of its own: an error in
        one where ranks share its weights is as in any other."""

        def body(call: Callable[[], Any]) -> Any:
            with self.lockstep.turn(), self._boundaries.request():
                return call()

        return self._served_by.together(
            [partial(body, call) for call in calls], Switch(self.world.device, self.progress)
        )

    @property
    def decisions(self) -> Mapping[str, Decision]:
        """The mode of each component's calls, and why."""
        return self._boundaries.decisions

    @decisions.setter
    def decisions(self, decisions: Mapping[str, Decision]) -> None:
        self._boundaries.decisions = decisions

    @property
    def exchanges_inside(self) -> bool:
        """Whether other ranks wait inside a component's call for this one's part: of its weights, or of its tokens."""
        return self.lockstep.size > 1 and any(component.is_called_together for component in self.components)

    def _observe_weights(self) -> None:
        for component in self.components:
            observer = self.recorder.of_weights(component.name)
            if (offloader := offload.offloader_of(component.module)) is not None:
                offloader.traffic.observer = observer
            sharding.observe_gathers(component.module, observer, self._overrides)
            if (context := context_of(component.module)) is not None:
                context.observer = observer

    def trace(self, details: Details) -> None:
        """From now on keep each interval, down to the blocks; before requests are made together for the first time."""
        assert self._lift is None, "the hooks of turns go on after those of blocks"
        self.recorder.details = details
        self._block_hooks = record_blocks(self.components, self.recorder)

    def check_sound(self, call: Mapping[str, Any], where: str) -> None:
        """Refuse sound of another rate than the pipeline works at, where it says one: played at the wrong speed, it is
        taken without a word. Raises UserError."""
        config = getattr(getattr(self.stock, "vae", None), "config", None)
        rate = getattr(self.stock, "sample_rate", None) or getattr(config, "sampling_rate", None)
        for file in files_in(call):
            if file.form is Form.sound and rate is not None and file.shape[2] != rate:
                raise UserError(
                    f"{where}: {file.written} has {file.shape[2]} samples a second, and {self.arguments.owner} works "
                    f"at {rate}; resample it (ffmpeg -i {file.written} -ar {rate} resampled.wav)"
                )

    def log_calls(self) -> Replay:
        """From now on, requests that are given a log go on where it ends."""
        boundaries, device = self._boundaries, self.world.device
        together = self.world.team.size > 1
        self.replay = Replay(
            self.components,
            boundaries,
            device,
            self.lockstep,
            self.progress,
            self._steps,
            makes_together=together,
            rounds=self.rounds,
        )
        return self.replay

    def compare(self, names: Iterable[str], request: Request) -> list[Parity]:
        """A call of each of these components, whose tokens ranks share out, against a whole one: those of the request,
        which is not made. On all ranks, with the same request; one that it does not call is left out."""
        trial = Trial([component for component in self.components if component.name in names], self.lockstep)
        try:
            self(request)
        except Compared:
            pass
        finally:
            trial.close()
        return trial.parities

    def __call__(self, request: Request, resume: Resume | None = None) -> Any:
        """All that the stock pipeline's call gives, with the request's adapters active.

        The noise comes from a CPU generator of the request's own, so that no other request, rank or device moves it;
        the global generators are set from its seed, for schedulers that draw from those.
        Where a component is sharded, the ranks that hold one copy of it call together, with requests that are alike;
        PeerLeft is raised on those whose request could not go on because another rank's failed. The ranks of a team
        make the same request; TeamDiffers is raised on all of them where they drew or made something else.
        With `resume`, the calls that its log has are not made again; StoppedInside is raised where the job is asked to
        stop and the request cannot finish in time.
        """
        with self.lockstep.request(), self._boundaries.group():
            return self._made(with_own_guiders(self.stock), request, resume)

    def make_together(
        self,
        requests: Sequence[Request],
        resumes: Sequence[Resume | None],
        ended: Callable[[int, Callable[[], Any], float], None],
        time_left: Callable[[], float | None] = lambda: None,
        meter: Meter | None = None,
    ) -> None:
        """Make requests that have the same adapters in one go: weights that come up serve all of them.

        `ended(index, outcome, seconds)` is called for each as soon as its call ends, in any order, while the others
        wait; `outcome()` gives or raises what the pipeline's own call for it would, `seconds` is how long its own work
        took. `time_left` is None until the job is asked to stop: from then on, requests that have not begun to denoise,
        and those that cannot finish in so many seconds beside the others, raise StoppedInside. As in a call, the ranks
        that hold one copy of sharded weights make as many requests together, each alike the one of its index on the
        other ranks. A `meter` measures the passes over the weights.
        """

        def body(request: Request, resume: Resume | None) -> Any:
            with self.lockstep.turn():
                output = self._made(own_shell(self.stock), request, resume)
                if self._witness is not None:  # nothing is written before all ranks of the team have the same
                    self.lockstep.meet(END)
                return output

        if len(requests) > 1 and (why := self.why_alone) is not None:
            raise ValueError(f"these requests cannot be made together: {why}")
        bodies = [partial(body, *one) for one in zip(requests, resumes, strict=True)]
        switch, grace = Switch(self.world.device, self.progress), Grace(time_left, self._after)

        def over(turn: Turn) -> None:
            ended(turn.index, turn.outcome, turn.seconds)

        with self._boundaries.group(), ExitStack() as measuring:
            for component in self.components if meter is not None else ():
                if sharding.is_sharded(component.module):
                    measuring.enter_context(sharding.without_prefetch(component.module))
            self._served_by.serve(bodies, over, switch, grace, meter)
        self._after = grace.after

    @property
    def _served_by(self) -> Lift:
        """Made, with its hooks on the blocks, when it is first needed."""
        if self._lift is None:
            self._lift = Lift(self.components, self.lockstep, self.recorder)
        return self._lift

    @property
    def why_alone(self) -> str | None:
        """Why its requests cannot be made together; None where they can be."""
        return why_alone(self.stock, self.components)

    @property
    def moves_weights(self) -> bool:
        """Whether requests that are made together share a pass over any component's weights."""
        return self._served_by.moves_weights

    def _made(self, stock: Any, request: Request, resume: Resume | None) -> Any:
        self.progress.making(request)
        self._steps.start(request)
        if (turn := this_turn()) is not None:
            turn.steps = self._steps.of_this()
        inference = enter(ExecutionMode.INFERENCE, self.world.device.type)
        generator = torch.Generator("cpu").manual_seed(request.seed)
        if self._witness is not None:
            self._witness.begin(generator)
        replaying = self._replaying(request, resume, generator)
        in_rounds = self.rounds.request(generator) if self.rounds is not None else nullcontext()
        recording = self.recorder.request(request.id)
        with inference, recording, self._boundaries.request(), replaying, in_rounds:
            self.adapters.set(request.lora)
            self.progress.doing("read inputs")
            inputs = decoded(request.call, self.world.device)
            self.progress.doing("start")
            set_global_generators(request.seed, self.world.device)
            output = self._call_stock(
                stock,
                **self.arguments.of_prompt(request.prompt),
                **inputs,
                generator=generator,
                output_type=request.output_type,
            )
        if self._witness is not None:
            self._witness.end(output)
        return output

    def _replaying(
        self, request: Request, resume: Resume | None, generator: torch.Generator
    ) -> AbstractContextManager[None]:
        if self.replay is None or resume is None:
            return nullcontext()
        return self.replay.request(request, resume, generator)

    def _call_stock(self, stock: Any, **arguments: Any) -> Any:
        try:
            return stock(**arguments)
        except RuntimeError as error:
            name = self.progress.component or ""
            decision = self.decisions.get(name, Decision(ExecutionMode.INFERENCE, ""))
            if decision.mode is ExecutionMode.NORMAL and "inference tensor" in str(error).lower():
                raise WrittenOutsideInferenceMode(
                    f"{name} writes in place into a tensor that {type(self.stock).__name__} made in inference mode, "
                    f"and runs outside of it ({decision.reason}); set execution.leave_inference=weights"
                ) from error
            raise

    def close(self) -> None:
        """Leave the stock pipeline as it was placed, without boundaries; what brings offloaded blocks ends too."""
        if self.replay is not None:
            self.replay.close()
        if self._lift is not None:
            self._lift.close()
        if self.rounds is not None:
            self.rounds.close()
        if self.tiles is not None:
            self.tiles.close()
        self._boundaries.close()
        for handle in self._block_hooks:
            handle.remove()
        self._overrides.undo()
        if self._groups.engine is not None:
            self._groups.engine.close()
