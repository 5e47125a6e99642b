"""Values that many entries share, kept once each."""

import json
from typing import Any


class Distinct:
    """Such as the arguments of a call, which ten thousand requests may have in common."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._places: dict[Any, int] = {}

    def place(self, value: Any) -> int:
        key = value if isinstance(value, str | tuple) else json.dumps(value, sort_keys=True, default=str)
        if key not in self._places:
            self._places[key] = len(self.values)
            self.values.append(value)
        return self._places[key]
