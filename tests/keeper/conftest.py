"""The rig that runs the daemon is shared with tests/daemon; how often to kill is an option."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "daemon"))

from rig import rig

__all__ = ["rig", "rounds"]


@pytest.fixture(scope="session")
def rounds() -> int:
    """How many kills a test does; NYDUS_TEST_KILLS=200 for the long run."""
    return int(os.environ.get("NYDUS_TEST_KILLS", "30"))
