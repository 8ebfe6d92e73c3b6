"""What the kernel has cached, as a shelf of the evictor; what only a kernel can refuse is shown in
the machine (vm-tests/guest/culls.py)."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from nydus_fscache.cache.evict import Evictor, OwnFiles
from nydus_fscache.transport.cachefiles import cull, kernel_cache
from nydus_fscache.transport.cachefiles.kernel_cache import KernelCache

SIZE = 64 << 10


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KernelCache:
    monkeypatch.setattr(kernel_cache, "PROC", tmp_path)  # nothing is mounted
    (tmp_path / "boot").write_bytes(bytes(4096))
    return KernelCache(tmp_path)


def fill(cache: KernelCache, domain: str, cookie: str, last_used: float) -> Path:
    path = cache.directory / "cache" / f"Ierofs,{domain}" / "@7f" / f"D{cookie}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(SIZE))
    os.utime(path, (last_used, last_used))
    return path


def bind(cache: KernelCache, domain: str, fsid: str, *blobs: str) -> None:
    cache.prepare(domain, fsid, cache.directory / "boot", dict.fromkeys(blobs, "identity"))


def test_least_recently_used_first_of_both_shelves(cache: KernelCache) -> None:
    ours = cache.directory / "ours"
    ours.mkdir()
    for name, last in (("old", 10), ("new", 40)):
        (ours / f"{name}.blob.data").write_bytes(os.urandom(SIZE))
        (ours / f"{name}.identity").touch()
        os.utime(ours / f"{name}.identity", (last, last))

    def evict(name: str) -> bool:
        (ours / f"{name}.blob.data").unlink()
        return True

    for cookie, last in (("older", 20.0), ("newer", 30.0)):
        fill(cache, "dom", cookie, last)
    evictor = Evictor([OwnFiles(ours, list, evict), cache], ours)
    would = evictor.shrink(SIZE, dry_run=True)
    assert [b["name"] for b in would["evicted"]] == ["old", "dom/older", "dom/newer"]
    assert (would["before"], would["after"]) == (4 * SIZE, SIZE)
    assert evictor.shrink(SIZE)["evicted"] == would["evicted"]
    assert [b.name for shelf in (OwnFiles(ours, list, evict), cache) for b in shelf.blobs()] == [
        "new"
    ]


def test_what_is_bound_stays(cache: KernelCache) -> None:
    bind(cache, "dom", "fs", "blob", "other")  # which forgets what was there without a record
    paths = [fill(cache, "dom", cookie, 1.0) for cookie in ("fs", "blob", "other", "left")]
    bind(cache, "dom", "fs2", "other")
    bind(cache, "alone", "alone", "only")
    cache.let_go("dom", "fs")
    assert {b.name for b in cache.blobs() if b.in_use} == {"dom/other"}
    assert {b.name for b in cache.blobs() if b.last_used == 1.0} == {"dom/left"}
    names = [f"dom/{cookie}" for cookie in ("fs", "blob", "other", "left", "nothing")]
    assert cache.drop(names) == ["dom/fs", "dom/blob", "dom/left"]
    assert [p.exists() for p in paths] == [False, False, True, False]
    records = cache.directory / "identities"
    assert {p.name for p in records.iterdir()} == {"dom.json", "alone.json"}
    cache.let_go("dom", "fs2")
    assert cache.drop(["dom/other"]) == ["dom/other"]
    assert list((cache.directory / "cache").iterdir()) == []
    assert [p.name for p in records.iterdir()] == ["alone.json"]
    cache.let_go("alone", "alone")
    cache.drop([])
    assert list(records.iterdir()) == []


def test_while_the_device_is_bound_the_kernel_deletes(cache: KernelCache) -> None:
    kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with kernel, device:
        cache.device = device.fileno()
        path = fill(cache, "dom", "one", 1.0)
        assert cache.drop(["dom/one", "dom/nothing"]) == ["dom/one"]
        assert kernel.recv(100) == b"cull Done"
        assert kernel.recv(100) == b"cull Ierofs,dom", "nothing else is in it"
        assert path.exists()
        kernel.close()
        assert cache.drop(["dom/one"]) == [], "EPIPE"


def test_where_cull_is_broken_what_is_not_in_use_is_deleted(cache: KernelCache) -> None:
    releases = ("6.1.0-56-cloud-amd64", "6.18.4", "6.19.3", "7.0-rc4", "7.0.2", "7.1.0")
    assert [cull.verb(r) for r in releases] == ["cull", "cull", "inuse", "inuse", "inuse", "cull"]
    path = fill(cache, "dom", "one", 1.0)
    kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with kernel, device:
        outcomes = kernel_cache._cull(device.fileno(), [path, path, path.parent], "inuse")
        assert outcomes == [0, errno.ENOENT, errno.EISDIR]
        assert kernel.recv(100) == b"inuse Done"
    assert not path.exists()


def test_links_are_not_followed(cache: KernelCache) -> None:
    fill(cache, "dom", "one", 1.0)
    elsewhere = cache.directory / "elsewhere"
    (cache.directory / "cache" / "Ierofs,dom").rename(elsewhere)
    (cache.directory / "cache" / "Ierofs,dom").symlink_to(elsewhere)
    assert cache.blobs() == []
    assert cache.drop(["dom/one"]) == []
    assert (elsewhere / "@7f" / "Done").exists()
    assert not (cache.directory / "cache" / "Ierofs,dom").is_symlink()


def test_reading_is_by_identity_and_never_fails(cache: KernelCache) -> None:
    bind(cache, "dom", "fs", "blob")
    path = fill(cache, "dom", "blob", 1.0)
    for _ in range(2):
        with cache.reading("dom/blob", "identity") as fd:
            assert fd is not None
            assert os.pread(fd, SIZE, 0) == path.read_bytes()
    for name, identity in (("dom/blob", "other"), ("dom/fs", "identity"), ("no/blob", "identity")):
        with cache.reading(name, identity) as fd:
            assert fd is None
    path.unlink()
    with cache.reading("dom/blob", "identity") as fd:
        assert fd is None
    path.mkdir()
    (cache.directory / "identities").rename(cache.directory / "moved")
    (cache.directory / "identities").write_text("no directory")
    with cache.reading("dom/blob", "identity") as fd:
        assert fd is None
