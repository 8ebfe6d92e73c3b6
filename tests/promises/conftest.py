"""Fixtures of the tests that run the daemon; how often to kill it is an option."""

from __future__ import annotations

import os

import pytest
from rig import rig

__all__ = ["rig", "rounds"]


@pytest.fixture(scope="session")
def rounds() -> int:
    """How many kills a test does; NYDUS_TEST_KILLS=200 for the long run."""
    return int(os.environ.get("NYDUS_TEST_KILLS", "30"))
