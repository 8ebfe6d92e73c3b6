"""The layer store's counts and names, without a kernel."""

from __future__ import annotations

import base64
import errno
import json
import os
import struct
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nydus_fscache.errors import CacheDirError
from nydus_fscache.runtimes.store import wire
from nydus_fscache.runtimes.store.catalogue import Catalogue, Image, Layer
from nydus_fscache.runtimes.store.names import Names
from nydus_fscache.runtimes.store.uses import Use, Uses
from nydus_fscache.runtimes.store.views import HOST, Views
from nydus_fscache.runtimes.store.wire import Op, Request

ONE, TWO, TOC = (f"sha256:{c * 64}" for c in "12f")
NAME = "registry.example/app:1"
LAYERS = (Layer(ONE, 10, ONE, "", gzipped=False, is_tree=False),
          Layer(TWO, 20, ONE, TOC, gzipped=True, is_tree=True))  # fmt: skip


def image_of(*, anonymous: bool = False) -> Image:
    return Image(NAME, anonymous, f"sha256:{'a' * 64}", LAYERS)


def use(digest: str, viewer: str = HOST, *, anonymous: bool = False) -> Use:
    return Use(viewer, NAME, digest, anonymous)


def test_counts_outlive_the_process_and_count_a_request_once(tmp_path: Path) -> None:
    file, image = tmp_path / "uses.json", image_of()
    uses = Uses(file, new_connection=True)
    uses.add(use(ONE), image, 2)
    uses.add(use(TWO), image, 4)
    uses.add(use(TWO), image, 4)  # a predecessor died before it answered
    successor = Uses(file, new_connection=False)
    successor.add(use(TWO), image, 4)
    assert successor.count() == 2
    assert successor.find(NAME, TOC, anonymous=False) == image
    assert successor.find(NAME, ONE, anonymous=True) is None
    assert not successor.release(use(ONE), image, 6)
    assert successor.release(use(TWO), image, 8)
    assert json.loads(file.read_text())["images"] == []
    # another connection counts its requests from the start
    again = Uses(file, new_connection=True)
    again.add(use(ONE), image, 8)
    assert again.count() == 1


def test_viewers_and_kinds_of_access_are_counted_apart(tmp_path: Path) -> None:
    uses = Uses(tmp_path / "uses.json", new_connection=True)
    mine, theirs = image_of(), image_of(anonymous=True)
    uses.add(use(TWO), mine, 2)
    uses.add(use(TWO, "u1-x", anonymous=True), theirs, 4)
    assert uses.release(use(TWO, "u1-x", anonymous=True), theirs, 6)
    assert not uses.in_use(theirs)
    assert uses.in_use(mine)


def test_a_release_too_many_is_none(tmp_path: Path) -> None:
    uses = Uses(tmp_path / "uses.json", new_connection=True)
    assert uses.release(use(ONE), image_of(), 2)
    uses.add(use(ONE), image_of(), 4)
    assert uses.count() == 1


@pytest.mark.parametrize("text", ["", "[]", '{"version": 9}', '{"version": 1, "uses": [{}]}'])
def test_a_state_of_another_is_not_taken_for_ours(tmp_path: Path, text: str) -> None:
    file = tmp_path / "uses.json"
    file.write_text(text)
    with pytest.raises(CacheDirError) as refused:
        Uses(file, new_connection=True)
    assert refused.value.hint


class _Catalogue:
    def find(self, name: str, digest: str, *, anonymous: bool) -> Image | None:
        image = image_of(anonymous=anonymous)
        return image if name == NAME and image.layer(digest) else None


def names_of(tmp_path: Path) -> Names:
    uses = Uses(tmp_path / "uses.json", new_connection=True)
    return Names(cast(Catalogue, _Catalogue()), cast(Views, None), uses)


def request(op: Op, node: int, body: bytes = b"") -> Request:
    return Request(op, 2, node, 0, os.getpid(), body)


def look_up(names: Names, node: int, *path: str) -> int:
    for name in path:
        found = names.handle(request(Op.LOOKUP, node, name.encode() + b"\0"))
        node = struct.unpack_from("<Q", found)[0]
    return node


CODED = base64.b64encode(NAME.encode()).decode()


def test_a_successor_gives_the_same_numbers(tmp_path: Path) -> None:
    first = look_up(names_of(tmp_path), wire.ROOT, CODED, TWO, "diff")
    successor = names_of(tmp_path)
    with pytest.raises(OSError, match=r"\[Errno") as stale:  # until it is looked up again
        successor.handle(request(Op.GETATTR, first))
    assert stale.value.errno == errno.ESTALE
    assert look_up(successor, wire.ROOT, CODED, TWO, "diff") == first


def test_what_is_forgotten_is_not_kept(tmp_path: Path) -> None:
    names = names_of(tmp_path)
    node = look_up(names, wire.ROOT, CODED)
    look_up(names, wire.ROOT, CODED)
    names.handle(request(Op.FORGET, node, struct.pack("<Q", 1)))
    names.handle(request(Op.GETATTR, node))
    names.handle(request(Op.BATCH_FORGET, 0, struct.pack("<IIQQ", 1, 0, node, 1)))
    with pytest.raises(OSError, match=r"\[Errno"):
        names.handle(request(Op.GETATTR, node))


@pytest.mark.parametrize("toc", [False, True])
def test_info_repeats_the_digest_of_a_table_of_contents_that_was_asked_for(
    tmp_path: Path, toc: bool
) -> None:
    names = names_of(tmp_path)
    node = look_up(names, wire.ROOT, CODED, TOC if toc else TWO, "info")
    info = json.loads(names.handle(request(Op.READ, node, struct.pack("<QQI", 0, 0, 4096))))
    assert info["compressed-diff-digest"] == TWO
    assert info["compression"] == 2
    assert ("toc-digest" in info) == toc


@pytest.mark.parametrize(
    "path", [("x",), ("Tk9UIGEgcmVm",), (CODED, f"sha256:{'9' * 64}"), (CODED, TWO, "other"),
             (CODED, TWO, "diff", "deeper")]
)  # fmt: skip
def test_other_names_are_not_there(tmp_path: Path, path: tuple[str, ...]) -> None:
    with pytest.raises(OSError, match=r"\[Errno|") as missing:
        look_up(names_of(tmp_path), wire.ROOT, *path)
    assert missing.value.errno == errno.ENOENT


@given(st.binary(min_size=40, max_size=200))
def test_noise_is_no_request_or_one(data: bytes) -> None:
    try:
        found = wire.parse(memoryview(data))
    except ValueError:
        return
    assert len(found.body) <= len(data)


@given(st.integers(0, 20), st.integers(0, 400))
def test_a_directory_fits_into_what_was_asked_for(off: int, length: int) -> None:
    entries = [(f"name-{n}", wire.Attr(n + 2, 0o40755)) for n in range(10)]
    assert len(wire.directory(entries, off, length)) <= length
