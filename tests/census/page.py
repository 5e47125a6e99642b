"""Writes docs/tasks.md from the cases: which pipelines run, from what to what. `python -m tests.census.page`.

It says what the census tests, and no more: a case without a gap that does not run fails there.
"""

import dataclasses
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import diffusers
from diffusers.utils import BaseOutput

from tests.census.case import Case, replaced
from tests.census.cases import CASES, MISSING

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tasks.md"
HEAD = """# Tasks

Every pipeline of diffusers {version} with a transformer, and whether it runs here. *Runs* means: made of tiny random
parts, from a configuration and a prompt file as a user writes them, its output has the bits of the stock pipeline, with
all its components resident, all sharded over two ranks, all from disk, and two requests at once in a [group](groups.md)
from disk. None of them is named in the runner's code: a pipeline that is not here may run as well.

*From* is what the test gives: the prompt, and the arguments that are files (see [configuration](configuration.md)).
*Needs* is what `pip install dit-runner[tasks]` brings.

This page is written from the tests, by `python -m tests.census.page`.

{counts}

| pipeline | from | to | needs | runs |
| --- | --- | --- | --- | --- |
"""
_KINDS = {"image": "picture", "images": "picture", "frames": "clip", "video": "clip"}
_KINDS |= {"audio": "sound", "audios": "sound", "sound": "sound"}


def page() -> str:
    cases = sorted(CASES.values(), key=lambda case: case.pipeline)
    runs = [case for case in cases if not case.gap]
    with_torchvision = sum(bool(case.needs) for case in runs)
    counts = (
        f"{len(runs)} of {len(CASES) + len(MISSING)} run, {with_torchvision} of them only with torchvision. "
        f"{len(CASES) - len(runs)} do not, and {len(MISSING)} are not tried."
    )
    return HEAD.format(version=diffusers.__version__, counts=counts) + "".join(f"{row}\n" for row in _rows())


def _rows() -> Iterator[str]:
    for name in sorted([*CASES, *MISSING]):
        case = CASES.get(name)
        given = _given(case) if case else ""
        needs = ", ".join(case.needs) if case else ""
        runs = _runs(case) if case else f"not tried: {MISSING[name]}"
        yield f"| {name} | {given} | {_makes(name)} | {needs} | {runs} |"


def _runs(case: Case) -> str:
    told = " ".join(f"`{setting}`" for setting in case.settings)
    return f"no: {case.gap}" if case.gap else f"with {told}" if told else "yes"


def _given(case: Case) -> str:
    prompt = "a label" if isinstance(case.prompt, int) else "text" if case.prompt else ""
    files = [f"`{name}`" for name, value in case.call.items() if replaced(value, lambda file: None) != value]
    return ", ".join(filter(None, [prompt, *files]))


def _makes(name: str) -> str:
    """By the fields of the output that its call gives."""
    cls = getattr(diffusers, name)
    source, neighbours = inspect.getsource(cls.__call__), vars(sys.modules[cls.__module__])
    outputs = [
        value
        for word, value in neighbours.items()
        if inspect.isclass(value)
        and issubclass(value, BaseOutput)
        and word.endswith("PipelineOutput")
        and word in source
    ]
    names = [field.name for output in outputs for field in dataclasses.fields(output)]
    return " and ".join(dict.fromkeys(_KINDS[name] for name in names if name in _KINDS))


if __name__ == "__main__":
    PAGE.write_text(page())
