"""Attributes set on instances, over those of their class, and taken off again."""

from typing import Any

_ABSENT = object()


class Overrides:
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
