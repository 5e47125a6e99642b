"""The nodes and the Slurm of these tests, started once: `make test-slurm`."""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import tiny
from tests.slurm import nodes, slurm

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def box() -> Iterator[nodes.Nodes]:
    reason = nodes.why_not()
    if reason is not None:
        pytest.skip(f"two nodes on one machine: {reason}")
    root = Path(tempfile.mkdtemp(prefix="dit-nodes-"))
    root.chmod(0o755)  # munged wants a folder that only root can write, and all can enter
    try:
        with nodes.nodes(root) as box:
            yield box
    finally:
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="session")
def cluster(box: nodes.Nodes) -> Iterator[slurm.Slurm]:
    reason = slurm.why_not()
    if reason is not None:
        pytest.skip(f"a Slurm of one's own: {reason}")
    with slurm.slurm(box, box.folder) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="session")
def job(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A job of small requests: a recipe, a model and prompts. `job.images_per_prompt` says how many."""
    family = tiny.FAMILIES["pixart"]
    folder = tmp_path_factory.mktemp("job")
    rows = [{"prompt": prompt, **family.call} for prompt in family.prompts[:2]]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text("job: {seed: 0}\n")
    model = tiny.build(family.name, tiny_root)
    return [str(folder / "recipe.yaml"), f"model.path={model}", f"job.prompts={folder / 'prompts.jsonl'}"]
