"""A connection that was inherited stays open while its image cannot be bound: its readers wait."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nydus_fscache.errors import CacheDirError
from nydus_fscache.transport.fuse.connection import Shape
from nydus_fscache.transport.fuse.transport import FuseTransport


class FakePark:
    def __init__(self, inherited: dict[str, int]) -> None:
        self.inherited = inherited
        self.dropped: list[str] = []

    def take(self, name: str) -> int | None:
        return self.inherited.pop(name, None)

    def keep(self, name: str, fd: int) -> None:
        raise AssertionError("nothing new is opened")

    def drop(self, name: str) -> None:
        self.dropped.append(name)


class FullDisk:
    """As ``Objects`` is for a moment."""

    full = True

    def open_file(self, blob: object, backend: object) -> Any:
        if self.full:
            raise CacheDirError("no space left", hint="free some")
        return SimpleNamespace(oid=7)


class FakeCore:
    def __init__(self) -> None:
        self.trees: list[tuple[int, int, list[int]]] = []
        self.detached: list[int] = []

    def attach_fuse(self, number: int, fd: int) -> None:
        pass

    def attach_fuse_tree(self, number: int, fd: int, image: object, objects: list[int]) -> None:
        self.trees.append((number, fd, objects))

    def detach_fuse(self, number: int) -> None:
        self.detached.append(number)

    def add_object(self, *words: object) -> None:
        pass

    def look_again(self) -> None:
        pass


@pytest.fixture
def device() -> Iterator[int]:
    ours, kernels = socket.socketpair()
    with kernels:
        yield ours.detach()


@pytest.mark.parametrize("shape", Shape)
def test_bind_that_fails_keeps_the_connection(
    shape: Shape, device: int, tmp_path: Path
) -> None:
    number = shape.free_number([])
    park, core, objects = FakePark({f"fuse.{number}": device}), FakeCore(), FullDisk()
    made: Any = FuseTransport
    transport = made(core, objects, park, shape)
    (tmp_path / "boot").write_bytes(bytes(8192))
    image = SimpleNamespace(
        path=tmp_path / "boot", size=8192, blobs=(SimpleNamespace(),), backend=None
    )
    address = {"number": str(number)}
    with pytest.raises(CacheDirError):
        transport.bind(image, address)
    os.fstat(device)
    assert park.dropped == core.detached == []
    assert transport.is_alive(number)
    objects.full = False
    bound = transport.bind(image, address)
    if shape is Shape.TREE:
        assert core.trees == [(number, device, []), (number, -1, [7])]
        bound.tree.close()
    else:
        os.close(bound.fd)
        bound.pages.close()
    os.close(device)
