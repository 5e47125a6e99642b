"""The blocks of a component whose weights come up anew at each pass, and how one is kept up for several calls."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

import offload
import sharding
from runner.calls.stateful import why_stateful
from runner.components.component import Component


@dataclass(frozen=True)
class MovingBlock:
    """`keep` has its weights come up once for all calls until `let_go`, at the latest with the first of them; for those
    that do not come up before it, `bring_up` has them come now. In normal mode."""

    module: nn.Module
    keep: Callable[[], None]
    let_go: Callable[[], None]
    bring_up: Callable[[], object] = lambda: None


def why_whole(component: Component) -> str | None:
    """Why no call of the component is interrupted, although its weights may move; None where calls may be."""
    if component.stage == "decode":
        return "decoders of video keep state on the module while they run"
    return why_stateful(component.module)  # what a stranger's hooks do between two blocks of one call is not known


def moving_blocks(component: Component) -> list[MovingBlock]:
    """In the order in which the module declares them; none where whole calls have to follow one another."""
    module = component.module
    if why_whole(component) is not None:
        return []
    if (offloader := offload.offloader_of(module)) is not None:
        return [
            MovingBlock(block, partial(offloader.keep, name), offloader.let_go)
            for name, block in offloader.moving_blocks.items()
        ]
    return [
        MovingBlock(
            module.get_submodule(name),
            partial(sharding.keep, block),
            partial(sharding.let_go, block),
            partial(sharding.unshard, block),
        )
        for name, block in sharding.moving_blocks(module).items()
    ]
