"""What the documents name exists: links, files, settings, functions."""

import ast
import functools
import re
from pathlib import Path

import pytest

from runner.config import load_config
from runner.errors import UserError
from runner.output.folder import Folder
from tests.docs import documents
from tests.docs.documents import BESIDE, DOCUMENTS, ROOT

PACKAGES = ("runner", "weights", "sharding", "offload", "lora", "scripts", "tests")
TOP = {path.name for path in ROOT.iterdir()} - {"outputs"}
SETTING = re.compile(r"(model|components|placement|mesh|execution|lora|job)(\.[\w<>]+)+(=.*)?")
CALL = re.compile(r"([A-Za-z_][\w.]*)\(\)")
# A step of a walk: its number, its file, what of the file is passed, and then what happens there.
STEP = re.compile(r"[0-9]+\. `([\w/]+\.py)`((?:,? `[^`]+`)*): .*")


def named(path: Path) -> str:
    return documents.name(path)


@pytest.mark.parametrize("document", DOCUMENTS + BESIDE, ids=named)
def test_links_lead_somewhere(document: Path) -> None:
    for link in documents.links(document):
        path, _, anchor = link.partition("#")
        if re.match(r"https?:", link):
            continue
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), f"{link} of {named(document)}"
        assert not anchor or anchor in documents.anchors(target), f"{link} of {named(document)}"


@pytest.mark.parametrize("document", DOCUMENTS + BESIDE, ids=named)
def test_files_and_folders_exist(document: Path) -> None:
    for span in documents.spans(document):
        for word in span.split():
            if "/" in word and word.split("/")[0] in TOP:
                assert any(ROOT.glob(word.rstrip("/"))), f"{word} in {named(document)}"


@pytest.mark.parametrize("document", DOCUMENTS + BESIDE[:1], ids=named)
def test_settings_are_known(document: Path) -> None:
    for span in documents.spans(document):
        for word in re.findall(r"\S+=\[[^]]*\]|\S+", span):
            if SETTING.fullmatch(word) and word not in _output_files():
                _check_setting(word, named(document))


def _check_setting(word: str, where: str) -> None:
    given = word.replace("<component>", "default").replace("<argument>", "height")
    try:
        load_config(None, [given if "=" in given else f"{given}=null"])
    except UserError as error:  # a name alone need not take null
        assert "=" not in given and "unknown key" not in str(error), f"{word} in {where}: {error}"


def _output_files() -> set[str]:
    folder = Folder(Path("out"))
    names = {getattr(folder, key).name for key, value in vars(Folder).items() if isinstance(value, property)}
    return names | {folder.results_of(1).name}


def test_the_files_of_an_output_folder_are_called_so() -> None:
    for document, header in (("README.md", "in the output folder"), ("docs/jobs.md", "file")):
        for row in documents.table(ROOT / document, header):
            assert {name.strip("/") for name in documents.in_spans(row[0])} <= _output_files(), row


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_functions_exist(document: Path) -> None:
    everywhere = _defined_everywhere()
    for span in documents.spans(document):
        if match := CALL.fullmatch(span):
            assert match[1] in everywhere or match[1].rpartition(".")[2] in everywhere, f"{span} in {named(document)}"


def test_each_step_of_a_walk_is_in_its_file() -> None:
    """`file` `function()`, `Class.method()`, ...: what happens there."""
    steps = [line for line in documents.prose(ROOT / "docs" / "architecture.md") if re.match(r"[0-9]+\. ", line)]
    assert len(steps) > 50
    for step in steps:
        if match := STEP.fullmatch(step):
            found = _defined(ROOT / match[1])
            for one in documents.in_spans(match[2]):
                assert one.removesuffix("()") in found or one in found, step
        else:
            assert not step.split()[1].startswith("`"), f"not `file` `name()`: text: {step}"


@functools.cache
def _defined_everywhere() -> set[str]:
    return {one for package in PACKAGES for file in (ROOT / package).rglob("*.py") for one in _defined(file)}


def _defined(file: Path) -> set[str]:
    """Functions, classes and methods of a file; methods with their class's name and without."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return found
