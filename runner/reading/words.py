"""What the value of `key=value` on the command line is: the text as it was typed, unless the key takes something else.

    a text             what is typed; of "..." and '...' the inside, by YAML's rules
    job.prompt         a text, a list of texts in [...], or a class label: a whole number such as 207
    job.call.ARGUMENT  null, a truth value, a number, [...], {...} or "..." where YAML reads it as one; everything else
                       is text, with "a cat #1", "Photo: a cat", "&x" and 12:30 as they are typed
    a section, a list  [...] or {...}
    all other keys     what the key's type makes of the text; null for what may be unset

What YAML would leave out or change inside brackets and quotes (comments, references, line breaks) is refused with the
way to write it. Nothing is interpolated: ${...} stays. OmegaConf's own dotlists read every value as YAML, where `x #1`
is x and 12:30 is 750; Hydra's grammar keeps 12:30, refuses `#` and `&` outside quotes, and interpolates.
"""

import re
import shlex
import typing
from dataclasses import is_dataclass
from typing import Any

from runner.errors import UserError
from runner.reading.plain_yaml import LABEL, Loader, NotYaml, TextLoader, quote, read_exactly, read_scalar
from runner.reading.schema import is_optional, is_text
from runner.reading.values import check_text, shown

_BRACKETS = ("[]", "{}")
_QUOTED = re.compile(r""""(?:[^"\\]|\\.)*"|'(?:[^']|'')*'""", re.DOTALL)  # as a whole: `"a" and "b"` is none
_EXAMPLE = """'job.prompt=["a cat #1", "a dog"]'"""


def value_of(key: str, typed: str, annotation: Any) -> Any:
    """What is typed for a key whose field is annotated so. Raises UserError."""
    check_text(typed, key)
    bare = typed.strip()
    if not bare:
        meant = f"; an empty text is written {quoted(key, '')}" if annotation is Any else ""
        raise UserError(f"{key} is empty; give it a value (is a variable of the shell unset?){meant}")
    if key == "job.prompt":
        return _prompt(key, typed, bare)
    if annotation is Any:
        return _argument(key, typed, bare)
    if is_optional(annotation) and bare == "null":
        return None
    if is_text(annotation):
        return _text(key, typed, bare)
    if is_dataclass(annotation) or typing.get_origin(annotation) in (dict, list):
        return _collection(key, bare)
    if bool in typing.get_args(annotation) and bare in ("true", "false"):  # of a key that also takes a word
        return bare == "true"
    return int(bare) if LABEL.fullmatch(bare) else bare


def quoted(key: str, text: str) -> str:
    """What to type in a shell to give the key this text, whatever it holds."""
    return shlex.quote(f"{key}={quote(text)}")


def _text(key: str, typed: str, bare: str) -> str:
    return _read(key, bare, bare[1:-1]) if _QUOTED.fullmatch(bare) else typed


def _prompt(key: str, typed: str, bare: str) -> Any:
    if bare[0] + bare[-1] == "[]":
        prompts = _read(key, bare, bare, TextLoader)
        for prompt in prompts:
            if not isinstance(prompt, str | int):
                raise UserError(f"{key}: YAML reads {shown(prompt)} in the list; quote each text, as in {_EXAMPLE}")
        return prompts
    return int(bare) if LABEL.fullmatch(bare) else _text(key, typed, bare)


def _argument(key: str, typed: str, bare: str) -> Any:
    if bare[0] + bare[-1] in _BRACKETS:
        return _read(key, bare, bare)
    if _QUOTED.fullmatch(bare):
        return _text(key, typed, bare)
    try:
        value = read_scalar(bare)
    except NotYaml as error:
        raise UserError(f"{key}: cannot read {shown(bare)} ({error})") from error
    return typed if isinstance(value, str) else value


def _collection(key: str, bare: str) -> Any:
    if bare[0] + bare[-1] in _BRACKETS:
        return _read(key, bare, None)
    if key in ("lora", "lora.adapters"):
        written = shlex.quote(f"{key}=[{{path: {quote(bare)}}}]")
        raise UserError(f"{key} is a list of adapters; write {written}")
    raise UserError(f"{key} is a section; write its keys one by one, {key}.KEY=VALUE (--help lists them all)")


def _read(key: str, bare: str, text: str | None, loader: type[Loader] = Loader) -> Any:
    """Raises UserError with the way to write it; `text` is what it is if it is meant as one text, None if it cannot."""
    try:
        return read_exactly(bare, loader)
    except NotYaml as error:
        advice = [f"quote each text of a list, as in {_EXAMPLE}"] if bare[0] + bare[-1] in _BRACKETS else []
        if text is not None:
            advice.append(f"write it {quoted(key, text if len(text) <= 200 else '...')} where it is one text")
        raise UserError(f"{key}: cannot read {shown(bare)} ({error}); {', or '.join(advice)}") from error
