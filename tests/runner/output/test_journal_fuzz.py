"""Whatever stands in an output folder's files: a job takes the folder over and goes on, or is told in one line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from runner.config import load_config
from runner.errors import UserError
from runner.output.folder import Folder
from runner.output.job_folder import settle_recipe, taken
from runner.output.lines import ManifestLine
from runner.output.lock import holder_of
from runner.output.manifest import file_facts
from runner.world import World

ALONE = World(0, 1, torch.device("cpu"))
NAMES = ("manifest.jsonl", "failures.jsonl", "attempts.jsonl", "recipe.json", "run.json", "job.lock")
_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
_values = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner)
)
_fields = st.sampled_from(
    ["id", "file", "bytes", "mtime_ns", "file_sha256", "started", "withdrawn", "error", "message"]
)
_lines = st.dictionaries(_fields, _values, max_size=9) | _values
_contents = st.binary(max_size=200) | st.lists(_lines, max_size=4).map(
    lambda lines: "".join(json.dumps(line) + "\n" for line in lines).encode()
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@settings(
    max_examples=200,
    derandomize=True,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.sampled_from(NAMES), _contents)
@example("manifest.jsonl", b'{"id": "a", "file": "\\u0000", "bytes": 1, "mtime_ns": 1, "file_sha256": ""}\n')
@example("manifest.jsonl", b'{"id": "a", "file": "../../etc/passwd", "bytes": 1, "mtime_ns": 1, "file_sha256": ""}\n')
@example("attempts.jsonl", b'{"started": {"a": 1}}\n{"started": [[], 1]}\n')
@example("recipe.json", b"[]")
@example("recipe.json", b'{"job.seed": NaN}')
@example("job.lock", b"[" * 100_000)
def test_any_content_of_any_file_is_mended_or_refused(root: Path, name: str, content: bytes) -> None:
    folder = Folder(root)
    for other in NAMES:
        (root / other).unlink(missing_ok=True)
    folder.images.mkdir(exist_ok=True)
    (folder.images / "a.png").write_bytes(b"pixels")
    kept = ManifestLine(id="kept", file="images/a.png", **file_facts(folder.images / "a.png"))
    before = json.dumps(kept.to_json()).encode() + b"\n" if name == "manifest.jsonl" else b""
    (root / name).write_bytes(before + content)
    recipe: dict[str, Any] = {"job.seed": 0}
    try:
        with taken(load_config(None, [f"job.output={root}"]).job, recipe, ALONE) as taken_folder:
            assert before == b"" or taken_folder.state.finished["kept"] == kept, "a sound line survives its neighbours"
            settle_recipe(taken_folder)
            taken_folder.manifest.begin(["x"])
        holder_of(folder)
    except UserError as error:
        assert name == "recipe.json" and len(str(error).splitlines()) == 1
        return
    for journal in ("manifest.jsonl", "attempts.jsonl"):
        for line in (root / journal).read_bytes().split(b"\n") if (root / journal).exists() else []:
            assert not line.strip() or isinstance(json.loads(line), dict), "what was damaged is gone"
