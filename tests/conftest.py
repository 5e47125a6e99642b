"""Fixtures: the tiny pipelines, built once a session."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests import tiny
from tests.census.tally import Tally
from tests.given_world import given_size
from tests.ranks import Worlds

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch.set_num_threads(1)  # as the ranks have: how a sum is split over threads moves its last bit
ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Under torchrun, only tests that run on its ranks; each rank has to come to the same ones."""
    if given_size() is not None:
        items[:] = [item for item in items if hasattr(getattr(item, "function", None), "on_each_rank")]


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Rank 0 speaks for all."""
    config.pluginmanager.register(Tally())
    if given_size() is not None and os.environ["RANK"] != "0":
        config.pluginmanager.unregister(name="terminalreporter")


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory, worlds: Worlds) -> Path:
    """Where the tiny pipelines are built. Under torchrun, by rank 0 for all: on others, transformers writes nothing."""
    root = tmp_path_factory.mktemp("tiny")
    if worlds.given is None:
        return root
    if worlds.given.rank == 0:
        for name in (*tiny.FAMILIES, *tiny.MODULAR):
            tiny.build(name, root)
    return worlds.given.shared(root)


@pytest.fixture(scope="session")
def emoji() -> Path:
    return ROOT / "models" / "emoji-dit"


@pytest.fixture(scope="session")
def worlds() -> Iterator[Worlds]:
    """The running multi-rank worlds that `@on_ranks` tests share."""
    worlds = Worlds()
    yield worlds
    worlds.close()
