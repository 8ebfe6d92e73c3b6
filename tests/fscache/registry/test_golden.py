"""Golden images pushed to Debian's docker-registry open completely from there."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from servers import Pusher, docker_registry

import rafs_v6
from nydus_fscache.backend.make import make_backend
from nydus_fscache.registry.pull import pull_bootstrap
from rafs_v6.validate import validate


def test_chunk_maps_come_from_the_registry(golden: Path, tmp_path: Path) -> None:
    with docker_registry(tmp_path) as host:
        for name in ("layers-zstd", "layers-zran", "chunk-dict"):
            image = golden / "images" / name
            blobs = [file.read_bytes() for file in sorted((image / "blobs").iterdir())]
            with Pusher(host, name) as push:
                push.nydus_image("v1", (image / "image.boot").read_bytes(), blobs)
            open_all_maps(f"{host}/{name}:v1")


def open_all_maps(reference: str) -> None:
    pulled = pull_bootstrap(reference, plain_http=True, environ={})
    bootstrap = rafs_v6.Bootstrap.from_bytes(pulled.bootstrap)
    validate(bootstrap)
    backend = make_backend(pulled.backend)
    deadline = time.monotonic() + 20

    def read_at(blob_id: str, off: int, length: int) -> bytes:
        return backend.read(blob_id, off, length, deadline=deadline)

    def size(blob_id: str) -> int:
        return backend.size(blob_id, deadline=deadline)

    try:
        assert bootstrap.blobs
        for info in bootstrap.blobs:
            chunks = rafs_v6.ChunkMap.load(info, read_at, bootstrap, blob_size=size)
            assert chunks.nchunks == info.chunk_count
    except rafs_v6.ImageError as e:
        pytest.fail(f"{reference}: {e}")
    finally:
        backend.close()
