"""The cache as a power cut leaves it: right bytes, whatever was lost.

NYDUS_TEST_POWER_CUTS=2000 tries so many states (of 120), and mounts every tenth.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import mmap
import os
import random
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from built import build_image
from power import CONTENTS, NAMES, Disk, record
from rangeserver import RangeServer
from rig import CLI, Rig, regular_files
from trees import assert_tree

from nydus_fscache.backend.make import make_backend
from nydus_fscache.cache.blob_files import CHUNK_MAP, DATA, BlobFiles
from nydus_fscache.cache.presence import PageMap, stamp
from nydus_fscache.core.core import Core
from nydus_fscache.fetch.cache_object import CacheObject
from nydus_fscache.fetch.job import Extent, Source
from nydus_fscache.fetch.queue import Fetcher
from nydus_fscache.files import data_extents
from nydus_fscache.image.image import ImageBlob, load_image

STATES = int(os.environ.get("NYDUS_TEST_POWER_CUTS", "120"))
MOUNTED = max(2, STATES // 10 if "NYDUS_TEST_POWER_CUTS" in os.environ else 0)
BLOB = "blob"
FILES, SIZE = 24, 100_000
PERSIST_S = 2.5  # more than the service takes to record what it fetched, once it is quiet
EXT4_IOC_SHUTDOWN, NO_LOG_FLUSH = 0x8004587D, 2


@dataclass
class _Image:
    bootstrap: Path
    blobs: Path
    blob: ImageBlob
    source: Source
    flat: bytes = b""

    @classmethod
    def make(cls, base: Path, seed: int) -> _Image:
        """Images of all seeds have other files, and say the same blob id."""
        out = base / f"image{seed}"
        out.mkdir()
        dice = random.Random(seed)
        build_image(
            base / f"tree{seed}", {f"f{i:02}": dice.randbytes(SIZE) for i in range(FILES)},
            "-B", out / "boot", "-b", out / BLOB, "--blob-id", BLOB, "--chunk-size", "0x10000",
        )  # fmt: skip
        config = {"type": "localfs", "localfs": {"dir": str(out)}}
        backend = make_backend(config)
        digest = hashlib.sha256((out / "boot").read_bytes()).hexdigest()
        image = load_image(out / "boot", digest, backend, config, "fanotify", out / "meta")
        return cls(out / "boot", out, image.blobs[0], Source(backend, BLOB))


def _use(rig: Rig, image: _Image, files: int, *, pause_s: float = 0.0) -> None:
    mount = rig.mount(image.bootstrap, image.blobs, "m", "--prefetch", "none")
    for path in regular_files(mount)[:files]:
        path.read_bytes()
        time.sleep(pause_s)
    if not image.flat:
        time.sleep(PERSIST_S)  # else it is recorded at the umount
        image.flat = (rig.root / "cache" / f"{BLOB}.blob.data").read_bytes()
    rig.run("umount", mount)


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Rig, list[_Image]]]:
    """strace's log of a daemon that reads an image cold, evicts it, and reads another one and
    again the first under the same name."""
    base = tmp_path_factory.mktemp("history")
    rig, images = Rig(base), [_Image.make(base, seed) for seed in (1, 2)]
    rig.root.mkdir(mode=0o700)
    log = base / "strace"
    try:
        with record([*CLI, "serve", "--root", str(rig.root)], log, base / "stderr"):
            while not (rig.root / "api.sock").exists():
                time.sleep(0.05)
            _use(rig, images[0], FILES, pause_s=0.05)
            rig.run("gc")
            _use(rig, images[1], FILES)
            _use(rig, images[0], FILES // 3)
            rig.run("stop")
        yield log, rig, images
    finally:
        for image in images:
            image.source.backend.close()
        rig.clean()


def _units(cache: Path, image: _Image, core: Core, fetcher: Fetcher) -> tuple[int, int]:
    """(units that count as present, or come to when they are wanted; those of them that differ)."""
    files, chunks = BlobFiles(cache), image.blob.chunks
    size = chunks.flat_size
    fd = files.open_data(BLOB, image.blob.identity, size)
    obj = CacheObject(
        1, BLOB, chunks, image.source, core, fetcher, PageMap(size),
        files.open_chunk_map(BLOB, chunks.nchunks, fd), fd,
    )  # fmt: skip
    obj.load_presence(data_extents(fd, size, 1000))
    status = os.fstat(fd)
    core.add_object(1, status.st_dev, status.st_ino, fd, size, obj.pages.memory)
    present = wrong = 0
    for unit in range(chunks.nunits):
        if not obj.is_present(unit):
            obj.reuse(Extent(unit, unit + 1, *obj.stored(unit)))
        if obj.is_present(unit):
            off, end = chunks.unit_range(unit)
            present += 1
            wrong += os.pread(fd, end - off, off) != image.flat[off:end]
    obj.close(deadline=time.monotonic())
    os.close(fd)
    return present, wrong


def _believe(cache: Path) -> None:
    """The worst case: stamps of inode and time hide nothing of what a power cut did."""
    data, chunk_map = (cache / f"{BLOB}.{suffix}" for suffix in (DATA, CHUNK_MAP))
    if data.exists() and chunk_map.exists():
        with chunk_map.open("r+b") as f:
            stamp(f.fileno(), data.stat())


def _states(disk: Disk, count: int, dice: random.Random, base: Path) -> Iterator[Path]:
    """Directories with what may be left, each gone when the next is asked for."""
    for number in range(count):
        moment = disk.moments[number * 61 % len(disk.moments)]
        kinds = ("data", "chunk_map", "identity", "meta", "new", "index", "index-journal")
        choices = {kind: (dice.choice(NAMES), dice.choice(CONTENTS)) for kind in kinds}

        cache = base / f"state{number}" / "cache"
        cache.mkdir(parents=True, mode=0o700)
        disk.cut(moment, cache, dice, lambda name, c=choices: c[name.rpartition(".")[2]])
        _believe(cache)
        yield cache
        for path in cache.iterdir():
            path.unlink()


def test_right_bytes_whatever_was_lost(
    history: tuple[Path, Rig, list[_Image]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log, rig, images = history
    caplog.set_level(logging.ERROR)
    memory = mmap.mmap(-1, Core.journal_size(64))
    Core.format_journal(memory, 64)
    core = Core(memory)
    fetcher = Fetcher(core.trim)
    dice = random.Random(1)
    present = wrong = 0
    disk = Disk(log, rig.root / "cache")
    for cache in _states(disk, STATES, dice, tmp_path):
        more = _units(cache, dice.choice(images), core, fetcher)
        present, wrong = present + more[0], wrong + more[1]
    print(f"{STATES} states of {len(disk.moments)} moments, {present} units present, {wrong} wrong")
    assert wrong == 0
    assert present > STATES, "nearly everything was lost: that shows nothing"

    cache = tmp_path / "careless"
    cache.mkdir()
    disk, last = Disk(log, rig.root / "cache", careless=".blob.data"), disk.moments[-1]
    disk.cut(last, cache, dice, lambda n: ("all", "length" if n.endswith("data") else "all"))
    _believe(cache)
    assert _units(cache, images[0], core, fetcher)[1], "without fdatasync it must be seen to fail"


def test_what_was_left_can_be_mounted(
    history: tuple[Path, Rig, list[_Image]], tmp_path: Path
) -> None:
    log, recorded, images = history
    disk = Disk(log, recorded.root / "cache")
    for number, cache in enumerate(_states(disk, MOUNTED, random.Random(2), tmp_path)):
        cache.parent.chmod(0o700)
        rig = Rig(tmp_path)
        rig.root = cache.parent
        try:
            image = images[number % 2]
            mount = rig.mount(image.bootstrap, image.blobs)
            for path in regular_files(mount):
                source = image.blobs.with_name(image.blobs.name.replace("image", "tree"))
                assert path.read_bytes() == (source / path.name).read_bytes()
        finally:
            rig.run("stop")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """An ext4 with a journal, on a loop device."""
    image, target = tmp_path / "disk", tmp_path / "mnt"
    with image.open("wb") as f:
        f.truncate(128 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    target.mkdir()
    subprocess.run(["mount", "-o", "loop", image, target], check=True)
    try:
        yield target
    finally:
        subprocess.run(["umount", "-l", target], check=False)


def _read_until_gone(mount: Path) -> None:
    for path in regular_files(mount):
        try:
            path.read_bytes()
        except OSError:
            return


def test_file_system_that_stops_under_load(tmp_path: Path, golden: Path, disk: Path) -> None:
    """A real journal: what was not written when the file system stopped is lost."""
    image = golden / "images" / "layers-zstd"
    dice = random.Random()
    with RangeServer(image / "blobs", latency_ms=5, mbps=4, keep_seen=False) as server:
        backend = tmp_path / "backend.json"
        table = {"addr": server.url, "path": "/blobs"}
        backend.write_text(json.dumps({"type": "http-proxy", "http-proxy": table}))
        rig = Rig(disk / "rig")
        mount = disk / "rig" / "m"
        mount.mkdir(parents=True)
        try:
            words = ("--backend", backend, "--prefetch", "none")
            rig.run("mount", image / "image.boot", mount, *words)
            (mount / "bin/busybox").read_bytes()
            time.sleep(PERSIST_S)
            readers = [threading.Thread(target=_read_until_gone, args=(mount,)) for _ in range(4)]
            for reader in readers:
                reader.start()
            time.sleep(dice.uniform(0.3, 1.3))
            top = os.open(disk, os.O_RDONLY)
            fcntl.ioctl(top, EXT4_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
            os.close(top)
            for reader in readers:
                reader.join(30)
                assert not reader.is_alive(), "a reader hangs"
            rig.run("stop", check=False)
        finally:
            rig.kill()
        deadline = time.monotonic() + 20  # what was unmounted lazily goes when the kernel is done
        while subprocess.run(["umount", disk], check=False, capture_output=True).returncode:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        subprocess.run(["mount", "-o", "loop", tmp_path / "disk", disk], check=True)
        try:
            rig.run("mount", image / "image.boot", mount, *words)
            found = sum(blob["present"] for blob in rig.status()["blobs"])
            assert_tree(mount, image / "expected.jsonl")
            blobs = rig.status()["blobs"]
            assert not any(blob["errors"] for blob in blobs)
            assert found or any(blob["recovered"] for blob in blobs), "nothing outlived the cut"
        finally:
            rig.kill()
