"""One registry for all tests of nydusify, a repository for each."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from faulty import Proxy, faulty
from oci_kit import Nydusify
from servers import Pusher, docker_registry

_numbers = count()


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with docker_registry(tmp_path_factory.mktemp("registry")) as host:
        yield host


@pytest.fixture
def repo() -> str:
    return f"app-{next(_numbers)}"


@pytest.fixture
def push(registry: str, repo: str) -> Iterator[Pusher]:
    with Pusher(registry, repo) as pusher:
        yield pusher


@pytest.fixture
def proxy(registry: str, tmp_path: Path) -> Iterator[Proxy]:
    directory = tmp_path / "proxy"
    directory.mkdir()
    with faulty(registry, directory) as made:
        yield made


@pytest.fixture
def nydusify(tmp_path: Path) -> Nydusify:
    directory = tmp_path / "here"
    directory.mkdir()
    return Nydusify(directory)
