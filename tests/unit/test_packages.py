"""Which package may import which: techniques know neither the runner nor each other."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = {"runner", "sharding", "offload", "structure", "lora", "scripts", "tests"}
MAY_IMPORT = {
    "structure": set[str](),
    "sharding": {"structure"},
    "offload": {"structure"},
    "lora": {"structure"},
    "runner": {"structure", "sharding", "offload", "lora"},
}


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_only_what_it_may(package: str) -> None:
    for file in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            found = {name.partition(".")[0] for name in names} & OURS - {package}
            assert found <= MAY_IMPORT[package], f"{file.relative_to(ROOT)}:{node.lineno} imports {found}"  # type: ignore[attr-defined]
