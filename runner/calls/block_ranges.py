"""Each call of a block, told to the recorder: for as long as a trace is written."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import nn

import offload
from runner.components.component import METHODS, Component
from runner.trace.recorder import Recorder
from weights.blocks import find_units
from weights.overrides import moves_no_weights


def record_blocks(components: Sequence[Component], recorder: Recorder) -> list[Any]:
    """Returns the handles of the hooks. They go on before those of turns, which then pause outside of a block's range,
    and after those that bring weights up, which are inside."""
    return [handle for component in components for handle in _on_component(component, recorder)]


def _on_component(component: Component, recorder: Recorder) -> Iterator[Any]:
    for name, block in blocks_of(component).items():
        yield block.register_forward_pre_hook(_hook(recorder.begin_block, component.name, name), prepend=True)
        yield block.register_forward_hook(_hook(recorder.end_block, component.name, name), always_call=True)


def blocks_of(component: Component) -> dict[str, nn.Module]:
    if (offloader := offload.offloader_of(component.module)) is not None:
        return dict(offloader.blocks)
    methods = [name for name in METHODS if callable(getattr(component.module, name, None))]
    return find_units(component.module, ("forward", *methods)).blocks


def _hook(tell: Callable[[str, str], None], component: str, block: str) -> Callable[..., None]:
    def hook(*_: Any) -> None:
        tell(component, block)

    return moves_no_weights(hook)
