"""What is laid over a module from outside: attributes set on the instance, and hooks."""

from collections.abc import Callable
from typing import Any, TypeVar

_ABSENT = object()
_F = TypeVar("_F", bound=Callable[..., Any])


class Overrides:
    """Attributes set on instances, over those of their class, and taken off again."""

    def __init__(self) -> None:
        self._set: list[tuple[object, str, Any, Any]] = []

    def set(self, instance: object, name: str, value: Any) -> None:
        self._set.append((instance, name, value, vars(instance).get(name, _ABSENT)))
        vars(instance)[name] = value

    def undo(self) -> None:
        """Put back what was there before, in reverse. Raises RuntimeError where another override lies over ours."""
        for instance, name, value, _ in self._set:
            if vars(instance).get(name) is not value:
                raise RuntimeError(
                    f"{type(instance).__name__}.{name} was replaced on the instance since; undo that first"
                )
        for instance, name, _, before in reversed(self._set):
            if before is _ABSENT:
                del vars(instance)[name]
            else:
                vars(instance)[name] = before
        self._set.clear()


def moves_no_weights(hook: _F) -> _F:
    """Mark a hook as one that leaves the module's weights where they are, for whoever reads hooks off live modules."""
    hook.__dict__["moves_no_weights"] = True
    return hook


def may_move_weights(hook: Callable[..., Any]) -> bool:
    return not getattr(hook, "moves_no_weights", False)
