"""The project's documents, taken apart: fenced blocks, the commands in them, code spans, tables and links."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, takewhile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BESIDE = [ROOT / "scripts" / "slurm" / "README.md", *sorted((ROOT / "models").glob("*/README.md"))]

_SPAN = re.compile(r"`([^`]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"#+ (.*)")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, and the name of the file that it shows where one is given (```yaml my.yaml)."""

    where: str
    language: str
    file: str
    text: str
    follows: bool  # directly on the block before it: then it is what that block's command prints


@dataclass(frozen=True)
class Command:
    """A command as it is shown, and what the document says that it prints."""

    where: str
    words: tuple[str, ...]
    prints: str | None = None

    @property
    def program(self) -> str:
        return self.words[0]


def name(document: Path) -> str:
    return str(document.relative_to(ROOT))


def blocks(document: Path) -> list[Block]:
    found: list[Block] = []
    opened: tuple[int, list[str]] | None = None
    lines: list[str] = []
    between = True  # something but blank lines since the last block
    for number, line in enumerate(document.read_text(encoding="utf-8").splitlines(), 1):
        if opened is None and line.startswith("```"):
            opened, lines = (number, line[3:].split()), []
        elif opened is not None and line.startswith("```"):
            start, info = opened
            language, file = [*info, "", ""][:2]
            found.append(Block(f"{name(document)}:{start}", language, file, "\n".join(lines), not between))
            opened, between = None, False
        elif opened is not None:
            lines.append(line)
        else:
            between = between or bool(line.strip())
    assert opened is None, f"{name(document)}: a fence is not closed"
    return found


def commands(document: Path) -> Iterator[Command]:
    """Every command of the `sh` blocks, without the variables set before it and without comments."""
    all_blocks = blocks(document)
    for block, following in pairwise([*all_blocks, None]):
        if block.language != "sh":
            continue
        found = [words for line in _joined(block.text) if (words := _words(line))]
        prints = following.text if following and following.follows and following.language == "text" else None
        assert prints is None or len(found) == 1, f"{block.where}: which of these commands prints what follows?"
        for place, words in enumerate(found, 1):
            yield Command(f"{block.where}#{place}", words, prints)


def spans(document: Path) -> Iterator[str]:
    """The code spans outside of fenced blocks."""
    for line in prose(document):
        yield from _SPAN.findall(line)


def prose(document: Path) -> Iterator[str]:
    """The lines outside of fenced blocks."""
    inside = False
    for line in document.read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            inside = not inside
        elif not inside:
            yield line


def links(document: Path) -> Iterator[str]:
    for line in prose(document):
        yield from _LINK.findall(line)


def anchors(document: Path) -> set[str]:
    """What links to a heading are called, as GitHub makes them."""
    headings = (match[1] for line in prose(document) if (match := _HEADING.match(line)))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def table(document: Path, *header: str) -> list[list[str]]:
    """The rows of the table whose header begins with these cells."""
    lines = list(prose(document))
    begin = next((i for i, line in enumerate(lines) if tuple(_cells(line)[: len(header)]) == header), None)
    assert begin is not None, f"{name(document)} has no table {header}"
    return [_cells(line) for line in takewhile(lambda line: line.startswith("|"), lines[begin + 2 :])]


def in_spans(cell: str) -> list[str]:
    return _SPAN.findall(cell)


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _joined(text: str) -> list[str]:
    return text.replace("\\\n", " ").splitlines()


def _words(line: str) -> tuple[str, ...]:
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    return tuple(words)
