"""Fixtures of the backends' tests: a blob, a deadline, backends that are closed."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from backend_kit import Make

from nydus_fscache.backend.base import Backend
from nydus_fscache.backend.make import make_backend


@pytest.fixture(scope="session")
def data() -> bytes:
    return random.Random(1).randbytes(1 << 20)


@pytest.fixture(scope="session")
def blob_id(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def blobs(tmp_path: Path, data: bytes, blob_id: str) -> Path:
    directory = tmp_path / "blobs"
    directory.mkdir()
    (directory / blob_id).write_bytes(data)
    return directory


@pytest.fixture
def make() -> Iterator[Make]:
    """``make("registry", host=…)``"""
    made: list[Backend] = []

    def make(kind: str, **options: Any) -> Backend:
        made.append(make_backend({"type": kind, kind: options}))
        return made[-1]

    yield make
    for backend in made:
        backend.close()
