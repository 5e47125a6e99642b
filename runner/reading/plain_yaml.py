"""YAML in which a number or a truth value is what looks like one, and everything else is the text it is written as.

YAML 1.1, which PyYAML and so OmegaConf read, takes 12:30 for 750, 010 for 8, and = for an error. Here a whole number is
one where it is written as it prints; OmegaConf still converts `010` and `1_000` for keys that are numbers.
"""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import yaml

LARGEST = 10_000  # values, aliases written out: nine lines of aliases can stand for a billion
DEEPEST = 20


class NotYaml(ValueError):
    """What is wrong, in words, and in which line of the text (counted from 1)."""

    def __init__(self, problem: str, line: int = 1) -> None:
        super().__init__(problem)
        self.line = line


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML's safe types, by the rules above."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}


class TextLoader(Loader):
    """For lists of prompts: what is not quoted is text too, but for class labels."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}


_OPENING = (yaml.FlowSequenceStartToken, yaml.FlowMappingStartToken, yaml.CollectionStartEvent)
_CLOSING = (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken, yaml.CollectionEndEvent)
_NUMBER = list("+-.0123456789")
_INT = re.compile(r"0|-?[1-9][0-9]*")
LABEL = re.compile(r"0|-?[1-9][0-9]{0,17}")  # longer ones fit into no label's 64 bits
_FLOAT = re.compile(
    r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_BOOL = re.compile("|".join(f"{w}|{w.title()}|{w.upper()}" for w in ("true", "false", "yes", "no", "on", "off")))
for _name, _pattern, _first in (
    ("int", _INT, _NUMBER),
    ("float", _FLOAT, _NUMBER),
    ("bool", _BOOL, list("tTfFyYnNoO")),
    ("null", re.compile("~|null|Null|NULL|"), ["~", "n", "N", ""]),
    ("merge", re.compile("<<"), ["<"]),
):
    Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"(?:{_pattern.pattern})$"), _first)
TextLoader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(f"(?:{LABEL.pattern})$"), _NUMBER)


class _Dumper(yaml.SafeDumper):
    """Text in quotes, unless it is plain words."""


_WORDS = re.compile(r"[A-Za-z_/](?:[\w ./+-]*[\w./+-])?", re.ASCII)


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # The emitter itself quotes words that YAML 1.1 takes for something else.
    style = dumper.default_style or (None if _WORDS.fullmatch(text) else '"')
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def read(text: str, loader: type[Loader] = Loader) -> Any:
    """The one document in the text, None where it is empty. Raises NotYaml."""
    with _in_words():
        for _ in _shallow(yaml.parse(text, Loader=loader)):
            pass
        reader = loader(text)
        try:
            node = reader.get_single_node()
            if node is None:
                return None
            _check_nodes(node)
            return reader.construct_document(node)
        finally:
            reader.dispose()


def read_exactly(text: str, loader: type[Loader] = Loader) -> Any:
    """A list, mapping or quoted text; what YAML would leave out or change is refused. Raises NotYaml."""
    with _in_words():
        end = 0
        for token in _shallow(yaml.scan(text, Loader=yaml.SafeLoader)):
            start, written = token.start_mark.index, text[token.start_mark.index : token.end_mark.index]
            if left_out := text[end:start].strip():
                raise NotYaml(f"YAML takes {left_out[:40]!r} for a comment")
            if isinstance(token, yaml.AnchorToken | yaml.AliasToken | yaml.TagToken | yaml.DirectiveToken):
                raise NotYaml(f"YAML takes {written!r} for a reference or a tag")
            if isinstance(token, yaml.ScalarToken) and len(written.splitlines()) > 1:
                raise NotYaml("a line break inside a text, which YAML makes a space; write \\n in double quotes")
            end = max(end, token.end_mark.index)
    return read(text, loader)


def read_scalar(text: str) -> Any:
    """What a single unquoted value is: None, a truth value, a number, or else the text itself. Raises NotYaml."""
    with _in_words():
        reader = Loader("")
        tag = reader.resolve(yaml.ScalarNode, text, (True, False))
        return text if tag.endswith(":merge") else reader.construct_object(yaml.ScalarNode(tag, text))


def dump(value: Any) -> str:
    """YAML that `read` and OmegaConf read back as the same value. Mappings keep their order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**31)


def quote(text: str) -> str:
    """The text in double quotes, in one line, as `read` and `read_exactly` read it back."""
    return yaml.dump(text, Dumper=_Dumper, default_style='"', allow_unicode=True, width=2**31).rstrip("\n")


def _shallow(parts: Iterator[Any]) -> Iterator[Any]:
    """The tokens or events, down to a depth that PyYAML can build: deep in C it overflows the stack of the process."""
    depth = 0
    for part in parts:
        depth += isinstance(part, _OPENING) - isinstance(part, _CLOSING)
        if depth > DEEPEST:
            raise NotYaml(f"lists or mappings are nested more than {DEEPEST} deep", part.start_mark.line + 1)
        yield part


def _check_nodes(root: yaml.Node) -> None:
    """Keys are given once; the whole is of a size that can be walked."""
    left, count = [root], 0
    while left:
        node, count = left.pop(), count + 1
        line = node.start_mark.line + 1
        if count > LARGEST:
            raise NotYaml(f"more than {LARGEST:,} values; put prompts into a file of their own, job.prompts=FILE", line)
        if isinstance(node, yaml.SequenceNode):
            left += node.value
        elif isinstance(node, yaml.MappingNode):
            names = Counter(name.value for name, _ in node.value if isinstance(name, yaml.ScalarNode))
            if twice := [name for name, times in names.items() if times > 1 and name != "<<"]:
                raise NotYaml(f"{twice[0]!r} is there twice; keep one", line)
            left += [part for pair in node.value for part in pair]


@contextmanager
def _in_words() -> Iterator[None]:
    """Whatever PyYAML raises over the text becomes NotYaml."""
    try:
        yield
    except NotYaml:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise NotYaml(error.problem or str(error), mark.line + 1 if mark else 1) from error
    except Exception as error:
        # Tags such as `!!int x` raise whatever the conversion raised: ValueError, KeyError, AttributeError.
        raise NotYaml(f"{type(error).__name__}: {error}") from error
