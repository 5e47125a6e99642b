"""Who may import whom: techniques know neither the runner nor each other, and a wing knows what stands below it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {
    "weights": set[str](),
    "sharding": {"weights"},
    "offload": {"weights"},
    "lora": {"weights"},
    "pipelines": set[str](),
    "runner": {"weights", "sharding", "offload", "lora", "pipelines"},
}
# The floors of runner/, the lowest first: files by their name, wings by their folder. A room imports from the floors
# below its own, and from itself; rooms of one floor do not know each other.
FLOORS = (
    {"errors"},
    {"reading"},
    {"inputs"},
    {"request"},
    {"config", "team"},
    {"world", "progress", "numerics", "trace"},
    {"output"},
    {"media", "health"},
    {"components"},
    {"calls"},
    {"rounds"},
    {"resume"},
    {"groups"},
    {"pipeline"},
    {"plan"},
    {"job", "parity"},
    {"report"},
    {"run"},
)
WINGS = [(room, set[str]().union(*FLOORS[:floor])) for floor, rooms in enumerate(FLOORS) for room in sorted(rooms)]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_what_it_may(package: str) -> None:
    for where, name in _imports(ROOT / package):
        found = {name.partition(".")[0]} & {*PACKAGES, "scripts", "tests"} - {package}
        assert found <= PACKAGES[package], f"{where} imports {found}"


@pytest.mark.parametrize(("room", "below"), WINGS)
def test_a_wing_of_the_runner_imports_only_from_below(room: str, below: set[str]) -> None:
    place = ROOT / "runner" / room
    for where, name in _imports(place if place.is_dir() else place.with_suffix(".py")):
        package, _, rest = name.partition(".")
        if package == "runner":
            assert rest.partition(".")[0] in {*below, room}, f"{where} imports {name}"


def test_the_watch_knows_nothing_of_how_weights_move() -> None:
    packages = {name.partition(".")[0] for _, name in _imports(ROOT / "runner" / "health")}
    assert not packages & {"sharding", "offload", "lora"}


def test_every_room_of_the_runner_has_a_floor() -> None:
    rooms = {
        path.stem for path in (ROOT / "runner").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert rooms - {"__init__"} == {room for rooms in FLOORS for room in rooms}


def _imports(place: Path) -> Iterator[tuple[str, str]]:
    """(file:line, module) of every import in a file, or below a folder."""
    for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                yield f"{file.relative_to(ROOT)}:{node.lineno}", name  # type: ignore[attr-defined]
