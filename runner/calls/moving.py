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
    """`keep` has its weights come up once for all calls until `let_go`; in normal mode, and neither communicates."""

    module: nn.Module
    keep: Callable[[], None]
    let_go: Callable[[], None]


def moving_blocks(component: Component) -> list[MovingBlock]:
    """In the order in which the module declares them; none where whole calls have to follow one another.

    So it is with a decoder (those of video keep state on the module while they run), and with a component that someone
    else laid hooks over: what these do between two blocks of one call is not known.
    """
    module = component.module
    if component.stage == "decode" or why_stateful(module) is not None:
        return []
    if (offloader := offload.offloader_of(module)) is not None:
        return [
            MovingBlock(block, partial(offloader.keep, name), offloader.let_go)
            for name, block in offloader.moving_blocks.items()
        ]
    return [
        MovingBlock(block, partial(sharding.keep, block), partial(sharding.let_go, block))
        for block in sharding.moving_blocks(module).values()
    ]
