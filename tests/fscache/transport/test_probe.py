"""The probes on this machine, and on roots that cannot work."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nydus_fscache.errors import CacheDirError, KernelRefused
from nydus_fscache.kernel import probe
from nydus_fscache.kernel.fanotify import pre_content_group
from nydus_fscache.kernel.mount import umount
from nydus_fscache.kernel.syscalls import fs_name, is_admin
from nydus_fscache.transport import registry
from nydus_fscache.transport.fanotify import probe as fanotify
from nydus_fscache.transport.fuse import probe as fuse
from nydus_fscache.transport.fuse.connection import Shape
from nydus_fscache.transport.tiny_image import tiny_image
from rafs_v6.format.erofs import (
    EROFS_FEATURE_INCOMPAT_CHUNKED_FILE,
    EROFS_SUPER_OFFSET,
    SuperBlock,
)

pytestmark = pytest.mark.skipif(
    not is_admin(), reason="NOT ROOT: transports cannot be probed"
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    if not probe.cache_dir(tmp_path).ok:
        pytest.skip(f"TEMPORARY FILES ARE ON {fs_name(tmp_path)}: set TMPDIR")
    return tmp_path


@pytest.fixture
def overlay(tmp_path: Path) -> Iterator[Path]:
    for name in ("lower", "upper", "work", "merged"):
        (tmp_path / name).mkdir()
    options = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    target = tmp_path / "merged"
    subprocess.run(["mount", "-t", "overlay", "none", "-o", options, str(target)], check=True)
    try:
        yield target
    finally:
        umount(target)


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    subprocess.run(["mount", "-t", "tmpfs", "none", str(tmp_path)], check=True)
    try:
        yield tmp_path
    finally:
        umount(tmp_path)


def test_an_event_is_delivered_and_nothing_stays(root: Path) -> None:
    if not fanotify.fanotify(root).ok:
        pytest.skip(f"NO FANOTIFY TRANSPORT: {fanotify.fanotify(root).detail}")
    descriptors, start = len(os.listdir("/proc/self/fd")), time.monotonic()
    for _ in range(20):  # a wait that nobody ends is a matter of luck
        fanotify.deliver_event(root)
    assert time.monotonic() - start < 5
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert list(root.iterdir()) == []


def test_the_image_of_the_probes_asks_for_what_ours_need() -> None:
    """Or a kernel that refuses ours (Debian 11: EROFS of 5.10) would be taken to serve them."""
    super_block = SuperBlock.unpack(tiny_image(), EROFS_SUPER_OFFSET)
    assert super_block.feature_incompat == EROFS_FEATURE_INCOMPAT_CHUNKED_FILE
    assert super_block.root_nid == 128


@pytest.mark.parametrize("shape", Shape)
def test_the_probe_of_fuse_leaves_nothing(shape: Shape) -> None:
    if not (found := fuse.probe(shape)).ok:
        pytest.skip(f"NO {shape.value} HERE: {found.detail}")
    descriptors, threads = os.listdir("/proc/self/fd"), os.listdir("/proc/self/task")
    for _ in range(3):
        fuse.mount_from_fuse(shape, tiny_image())
    assert len(os.listdir("/proc/self/fd")) <= len(descriptors)
    deadline = time.monotonic() + 30  # a thread that was joined is listed a moment longer
    while len(os.listdir("/proc/self/task")) > len(threads):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    # a tree is our own to refuse: it was validated before
    with pytest.raises(OSError if shape is Shape.TREE else KernelRefused):
        fuse.mount_from_fuse(shape, b"no image" * 1024)
    assert len(os.listdir("/proc/self/fd")) <= len(descriptors)


def test_report_is_json_and_agrees_with_the_choice(root: Path) -> None:
    report = registry.examine(root / "not" / "made" / "yet")
    document = json.loads(json.dumps(report.document()))
    assert set(document["transports"]) == set(registry.TRANSPORTS)
    assert all(f["ok"] or f["remedy"] for f in document["transports"].values())
    if report.choice is None:
        pytest.skip("NO TRANSPORT HERE")
    choice = registry.choose(root)
    assert choice.transport == document["auto"]
    assert choice.transport not in choice.reasons
    assert list(root.iterdir()) == []


def test_a_transport_that_is_not_there_is_refused_with_its_remedy(root: Path) -> None:
    if Path("/dev/cachefiles").exists():
        pytest.skip("THIS KERNEL HAS CACHEFILES")
    with pytest.raises(KernelRefused, match="/dev/cachefiles") as caught:
        registry.choose(root, "cachefiles")
    assert "CONFIG_CACHEFILES_ONDEMAND" in str(caught.value.hint)


def test_root_on_overlayfs(overlay: Path) -> None:
    with pytest.raises(CacheDirError, match="overlayfs") as caught:
        registry.choose(overlay / "root")
    assert "ext4" in str(caught.value.hint)
    assert registry.examine(overlay).choice is None


def test_root_on_tmpfs(tmpfs: Path) -> None:
    with pytest.raises(CacheDirError, match="tmpfs"):
        registry.choose(tmpfs)
    assert registry.examine(tmpfs).choice is None


def test_root_below_a_file(root: Path) -> None:
    (root / "file").write_bytes(b"")
    with pytest.raises(CacheDirError, match="no directory"):
        registry.choose(root / "file" / "root")


def test_event_that_never_comes_is_an_error(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = pre_content_group
    monkeypatch.setattr(fanotify, "mark_add", lambda _group, _fd: None)
    with pytest.raises(KernelRefused, match="no event came"):
        fanotify.deliver_event(root)
    os.close(group())
