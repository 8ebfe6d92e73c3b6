"""Fixtures of the tests that run the daemon; how often to kill it is an option."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from rig import rig
from servers import docker_registry

__all__ = ["registry", "rig", "rounds"]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with docker_registry(tmp_path_factory.mktemp("registry")) as host:
        yield host


@pytest.fixture(scope="session")
def rounds() -> int:
    """How many kills a test does; NYDUS_TEST_KILLS=200 for the long run."""
    return int(os.environ.get("NYDUS_TEST_KILLS", "30"))
