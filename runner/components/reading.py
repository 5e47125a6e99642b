"""Where a library reads what the user gave: what it raises there is the user's error, in one line.

[Note: where the border lies]
Libraries raise anything over a file that is not what they expect: KeyError, TypeError, RuntimeError, NameError for a
package that is not installed. So inside `reading` it is not the type that tells, but the place: an exception that was
raised in a library's code, on a call that only reads or builds what a directory describes, is about that directory. One
that was raised in a line of this project is a bug, and keeps its traceback; so is a call that the library did not take
(wrong arguments), which Python raises in the line that calls. Only calls of a library belong inside. What the machine
lacks (memory) is nobody's mistake and passes too.
"""

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from runner.errors import UserError
from weights.files import FileError

_OURS = {"runner", "weights", "sharding", "offload", "lora"}
_MACHINE = (MemoryError, torch.OutOfMemoryError, torch.AcceleratorError)
_SENTENCES = (OSError, ValueError, RuntimeError, ImportError)  # what libraries write for people to read
# Advice for who loads by name from a hub. Here a path is a path, and nothing is fetched.
_ABOUT_THE_HUB = re.compile(
    r"huggingface\.co|hf\.co|internet|\bhub\b|offline|hf auth|local director|trust_remote_code", re.I
)
_MAX_CHARACTERS = 400


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Raise UserError, `what` and the library's own words, for what a library raises inside."""
    try:
        yield
    except (UserError, FileError, *_MACHINE):
        raise
    except BaseException as error:  # of any kind: see the note; panics of Rust libraries are no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if _is_ours(error):
            raise
        raise UserError(f"{what}: {words_of(error)}") from error


@contextmanager
def file_errors() -> Iterator[None]:
    """A FileError names the file and the fix: raise it as the user's error, as it stands."""
    try:
        yield
    except FileError as error:
        raise UserError(str(error)) from error


def words_of(error: BaseException) -> str:
    """A library's message in one line, without its advice to look at the network."""
    sentences = re.split(r"(?<=[.!?]) +", " ".join(str(error).split()))
    text = " ".join(sentence for sentence in sentences if not _ABOUT_THE_HUB.search(sentence))
    text = text or "its files are not what the library expects"
    if not isinstance(error, _SENTENCES):
        text = f"{type(error).__name__}: {text}"
    text = text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]}..."
    if "trust_remote_code" in str(error):
        text += " Code of a model directory is never run here."
    return text + _to_install(error)


def _to_install(error: BaseException) -> str:
    missing = error.name if isinstance(error, ModuleNotFoundError | NameError) else None
    return f"; pip install {missing.partition('.')[0]}" if missing else ""


def _is_ours(error: BaseException) -> bool:
    """Whether the line that raised it is this project's."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return frames[-1][0].f_globals.get("__name__", "").partition(".")[0] in _OURS
