"""Puts the page together: a template, a style and a script of ours, and the job's data between them.

Prompts, messages and file names come from users. The template escapes them (autoescape); the data block is JSON in
which `<`, `>`, `&` are written as escapes; the script sets text and never markup. Should one of these fail, the page's
own policy still runs no script but ours, and reaches no network.
"""

import base64
import hashlib
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from runner.output.folder import Folder
from runner.output.write import write_whole
from runner.report.live.line import a_time
from runner.report.page.failures import entries
from runner.report.page.memory import memory
from runner.report.page.results import results
from runner.report.page.runs import runs
from runner.report.page.settings import flat
from runner.report.page.timeline import timeline
from runner.report.page.times import times
from runner.report.told import Told
from runner.report.wording import at_time, in_bytes, in_seconds

_HERE = Path(__file__).parent
# Later ones use what the earlier ones define.
_SCRIPTS = ("dom", "search", "grid", "detail", "views", "chart", "curves", "timeline", "tracks", "main")


def write_report(folder: Folder) -> None:
    """Write the folder's report.html, from its files alone."""
    text = page(Told.by(folder))
    write_whole(folder.report, lambda temp: temp.write_text(text, encoding="utf-8"))


def page(told: Told) -> str:
    """The whole page as text."""
    style, script = _read("page.css"), "\n".join(_read(f"{name}.js") for name in _SCRIPTS)
    script = f'"use strict";\n(() => {{\n{script}\n}})();\n'
    return (
        _environment()
        .get_template("page.html")
        .render(
            told=told,
            run=told.run,
            name=told.folder.path.resolve().name,
            written=time.time(),
            failures=entries(told),
            runs=runs(told),
            times=times(told.run),
            settings=flat(told.run.get("config")),
            policy=_policy(style, script),
            style=Markup(style),
            script=Markup(script),
            data=data(told),
        )
    )


def data(told: Told) -> Mapping[str, Any]:
    """What the script works with."""
    return {
        "name": told.folder.path.resolve().name,
        "state": told.state,
        **results(told.folder, told.made),
        "memory": memory(told),
        "timeline": timeline(told.folder, int(told.run.get("world_size") or 1)),
        "runs": [asdict(run) for run in runs(told)],
    }


def _environment() -> Environment:
    """Of templates in which every value is escaped, and a misspelt name is an error."""
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "default": str}
    environment.filters |= {"bytes": in_bytes, "seconds": in_seconds, "time": at_time, "rate": a_time}
    return environment


def _policy(style: str, script: str) -> str:
    """No script and no style but these two, by their hashes; media from beside the page, and from nowhere else."""

    def digest(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    media = "'self' file: data:"
    return (
        f"default-src 'none'; script-src {digest(script)}; style-src {digest(style)}; img-src {media}; "
        f"media-src {media}; base-uri 'none'; form-action 'none'"
    )


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")
