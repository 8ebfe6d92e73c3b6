"""Real system calls: images of mkfs.erofs, mounts, and what the kernel refuses."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from unprivileged import as_nobody

from nydus_fscache.errors import KernelRefused, MountpointError
from nydus_fscache.kernel import mountinfo
from nydus_fscache.kernel.fanotify import mark_add, mark_remove, pre_content_group
from nydus_fscache.kernel.leases import try_write_lease
from nydus_fscache.kernel.mount import erofs_has_option, has_erofs, mount_erofs, umount
from nydus_fscache.kernel.syscalls import (
    boot_id,
    fs_name,
    has_io_uring,
    is_admin,
    raise_nofile_limit,
)

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not is_admin(), reason="NOT ROOT: mounts cannot be tested"
)

CONTENT = b"content " * 2000


def unmount_below(directory: Path) -> None:
    for info in reversed(mountinfo.mounts()):
        if info.mountpoint.startswith(f"{directory}/"):
            umount(Path(info.mountpoint), lazy=True)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory with an empty mountpoint ``m``; descriptors must not leak."""
    (tmp_path / "m").mkdir()
    before = os.listdir("/proc/self/fd")
    try:
        yield tmp_path
        assert len(os.listdir("/proc/self/fd")) == len(before)
    finally:
        unmount_below(tmp_path)


def make_image(place: Path, *options: str) -> Path:
    if shutil.which("mkfs.erofs") is None:
        pytest.skip("NO mkfs.erofs: install erofs-utils")
    tree = place / "tree"
    tree.mkdir(exist_ok=True)
    (tree / "file").write_bytes(CONTENT)
    subprocess.run(
        ["mkfs.erofs", *options, str(place / "image"), str(tree)], check=True, capture_output=True
    )
    return place / "image"


def mount(image: Path, target: Path, *devices: Path) -> None:
    with ExitStack() as files:
        fds = [files.enter_context(p.open("rb")).fileno() for p in (image, *devices)]
        mount_erofs(fds[0], fds[1:], target)


def test_mount_read_umount(place: Path) -> None:
    target = place / "m"
    mount(make_image(place), target)
    assert (target / "file").read_bytes() == CONTENT
    found = mountinfo.find_mount(target)
    assert found is not None
    assert found.fstype == "erofs"
    assert fs_name(target) == "erofs"
    with pytest.raises(OSError, match="Read-only"):
        (target / "file").write_bytes(b"")
    umount(target)
    assert mountinfo.find_mount(target) is None


def test_devices_are_named_by_descriptor(place: Path) -> None:
    image = make_image(place, "--chunksize=4096", f"--blobdev={place / 'blob'}")
    # the name in the image's own table leads nowhere now
    (place / "blob").rename(place / "with, comma")
    mount(image, place / "m", place / "with, comma")
    assert (place / "m" / "file").read_bytes() == CONTENT


def test_wrong_number_of_devices_is_refused_with_the_kernels_words(place: Path) -> None:
    image = make_image(place)
    with pytest.raises(KernelRefused, match=r"extra devices.*Invalid argument") as caught:
        mount(image, place / "m", image)
    assert caught.value.hint
    assert mountinfo.find_mount(place / "m") is None


def test_no_image(place: Path) -> None:
    (place / "image").write_bytes(bytes(8192))
    with pytest.raises(KernelRefused, match=r"superblock|magic"):
        mount(place / "image", place / "m")


def test_mountpoint_is_missing_or_a_file(place: Path) -> None:
    image = make_image(place)
    with pytest.raises(MountpointError, match="No such file") as caught:
        mount(image, place / "missing")
    assert "mkdir" in str(caught.value.hint)
    with pytest.raises(MountpointError):
        mount(image, place / "image")


def test_mountpoint_with_odd_name_is_found(place: Path) -> None:
    target = place / "a b\\c\n\u00e4"
    target.mkdir()
    mount(make_image(place), target)
    assert mountinfo.find_mount(target) is not None
    umount(target)


def test_umount_of_what_is_busy_or_not_mounted(place: Path) -> None:
    target = place / "m"
    with pytest.raises(MountpointError, match="nothing is mounted"):
        umount(target)
    mount(make_image(place), target)
    with (target / "file").open("rb"):
        with pytest.raises(MountpointError, match="in use"):
            umount(target)
        umount(target, lazy=True)


def test_lease_tells_whether_the_kernel_still_reads_the_file(place: Path) -> None:
    image, target = make_image(place), place / "m"
    assert try_write_lease(image)
    mount(image, target)
    assert not try_write_lease(image)
    with (target / "file").open("rb"):
        umount(target, lazy=True)
        assert mountinfo.find_mount(target) is None
        assert not try_write_lease(image)
    assert try_write_lease(image)
    assert try_write_lease(place / "missing")


def pre_content() -> int:
    try:
        return pre_content_group()
    except KernelRefused as e:
        pytest.skip(f"NO PRE-CONTENT EVENTS: {e}")


def test_marks(place: Path) -> None:
    path = place / "file"
    path.write_bytes(b"x")
    group = pre_content()
    try:
        with path.open("rb") as f:
            try:
                mark_add(group, f.fileno())
            except KernelRefused as e:
                pytest.skip(f"NO PRE-CONTENT EVENTS: {e}")
            mark_add(group, f.fileno())  # again is no error
            mark_remove(group, f.fileno())
            mark_remove(group, f.fileno())
        assert path.read_bytes() == b"x"  # would wait for ever, were it still marked
    finally:
        os.close(group)


def test_mark_on_tmpfs_is_refused() -> None:
    shm = Path("/dev/shm")
    if not shm.is_dir() or fs_name(shm) != "tmpfs":
        pytest.skip("NO TMPFS at /dev/shm")
    group = pre_content()
    fd = os.open(shm, os.O_TMPFILE | os.O_RDWR)
    try:
        with pytest.raises(KernelRefused) as caught:
            mark_add(group, fd)
        assert caught.value.hint
    finally:
        os.close(fd)
        os.close(group)


@pytest.mark.parametrize("call", ["fanotify.pre_content_group()", "mount.create_erofs([])"])
def test_not_root_is_told_so(call: str) -> None:
    code = (
        "from nydus_fscache.kernel import fanotify, mount, syscalls\n"
        f"assert not syscalls.is_admin()\n{call}"
    )
    done = subprocess.run(
        as_nobody(code), capture_output=True, text=True, timeout=30, check=False
    )
    assert "NotPrivileged" in done.stderr


def test_options_of_the_driver() -> None:
    assert has_erofs()
    assert erofs_has_option("device")
    assert not erofs_has_option("nosuchoption")


def test_facts_of_this_boot() -> None:
    assert len(boot_id()) == 36
    assert raise_nofile_limit() > 0
    assert has_io_uring() in (True, False)
