"""What the multi-rank tests of families share."""

from pathlib import Path

import pytest

from tests import tiny


@pytest.fixture
def path(family: str, tiny_root: Path) -> Path:
    """The family's directory; not built on the ranks: there, transformers writes weights on rank 0 only."""
    return tiny.build(family, tiny_root)
