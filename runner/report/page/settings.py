"""The settings of a run as a table: one line a key, as `key=value` has it."""

import json
from collections.abc import Iterator, Mapping
from typing import Any


def flat(config: Any) -> list[tuple[str, str]]:
    """`("job.seed", "0")` for each setting, without those that are unset; none where there is no configuration."""
    return list(_lines(config, "")) if isinstance(config, Mapping) else []


def _lines(values: Mapping[str, Any], before: str) -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _lines(value, f"{before}{name}.")
        elif value is not None and value != []:
            yield before + str(name), value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
