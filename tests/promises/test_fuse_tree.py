"""The tree by FUSE shows what the kernel's own EROFS shows, to the number and the order; and it
carries what containers do on top of it."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from built import create
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rig import Rig, regular_files
from trees import golden_names, shown

pytestmark = pytest.mark.parametrize("rig", ["fuse-tree"], indirect=True)

Seen = dict[str, Any]


def seen_of(root: Path) -> Seen:
    """All that can be seen of a tree, directories in their order."""
    found: Seen = {}

    def look(path: Path) -> None:
        status, at = path.lstat(), str(path.relative_to(root))
        found[at] = {
            **shown(path),
            "ino": status.st_ino, "nlink": status.st_nlink, "size": status.st_size,
            "blocks": status.st_blocks, "blksize": status.st_blksize,
            "times": (status.st_mtime_ns, status.st_ctime_ns, status.st_atime_ns),
        }  # fmt: skip
        if found[at]["type"] == "dir":
            with os.scandir(path) as entries:
                listed = [(e.name, e.inode(), e.is_dir(follow_symlinks=False)) for e in entries]
            found[at]["entries"] = listed
            for name, _, _ in listed:
                look(path / name)

    look(root)
    return found


def compare(rig: Rig, boot: Path, blobs: Path) -> Seen:
    """The image over FUSE, beside the kernel's own; both are unmounted when this returns."""
    tree = rig.mount(boot, blobs, "tree")
    kernels = rig.mountpoint("kernels")
    rig.run("mount", boot, kernels, "--blob-dir", blobs, "--transport", "fuse-file")
    try:
        ours, theirs = seen_of(tree), seen_of(kernels)
        a, b = os.statvfs(tree), os.statvfs(kernels)
        assert (a.f_bsize, a.f_blocks, a.f_ffree, a.f_namemax) == (
            b.f_bsize, b.f_blocks, b.f_ffree, b.f_namemax,
        )  # fmt: skip
    finally:
        rig.run("umount", tree)
        rig.run("umount", kernels)
    assert list(ours) == list(theirs)
    for path, entry in theirs.items():
        assert ours[path] == entry, path
    return ours


@pytest.mark.parametrize("name", golden_names())
def test_golden_image_is_as_the_kernel_has_it(rig: Rig, golden: Path, name: str) -> None:
    image = golden / "images" / name
    compare(rig, image / "image.boot", image / "blobs")


NAMES = st.one_of(
    st.text("ab.é~ \n", min_size=1, max_size=6).filter(lambda n: n not in (".", "..")),
    st.integers(200, 255).map(lambda n: "n" * n),
)
LEAF = st.one_of(
    st.tuples(st.just("file"), st.integers(0, 9000)),
    st.tuples(st.just("link"), st.sampled_from(["x", "y" * 300, "z" * 4000])),
    st.tuples(st.just("fifo"), st.just(0)),
    st.tuples(st.just("device"), st.integers(0, 70000)),
    st.tuples(st.just("hard"), st.just(0)),
    st.tuples(st.just("xattrs"), st.integers(1, 20)),
    st.tuples(st.just("crowd"), st.integers(100, 400)),
)
TREES = st.recursive(
    st.dictionaries(NAMES, LEAF, max_size=5),
    lambda inner: st.dictionaries(NAMES, st.one_of(LEAF, inner), max_size=4),
    max_leaves=12,
)


def plant(at: Path, tree: dict[str, Any], planted: list[Path]) -> None:
    at.mkdir()
    for name, what in tree.items():
        path = at / name
        if isinstance(what, dict):
            plant(path, what, planted)
            continue
        kind, number = what
        if kind == "link":
            path.symlink_to(number)
        elif kind == "fifo":
            os.mkfifo(path, 0o620)
        elif kind == "device":
            os.mknod(path, 0o020600, os.makedev(number % 500, number))
        elif kind == "hard" and planted:
            os.link(planted[0], path)
        elif kind == "crowd":
            path.mkdir()
            for i in range(number):
                (path / f"{i:03}").write_bytes(b"" if i % 3 else b"same")
        else:
            path.write_bytes(bytes(i % 251 for i in range(number)))
            planted.append(path)
        if kind == "xattrs":
            for i in range(number):
                os.setxattr(path, f"user.{'k' * i}{i}", b"v" * i)
            os.setxattr(path, "trusted.t", b"\0")
        if kind in ("file", "xattrs"):
            os.chown(path, number, 70000 + number)
            os.utime(path, ns=(0, number * 1_000_000_007))


@given(tree=TREES)
@settings(
    max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
def test_random_trees_are_as_the_kernel_has_them(rig: Rig, tree: dict[str, Any]) -> None:
    built = rig.base / "built"
    shutil.rmtree(built, ignore_errors=True)
    built.mkdir()
    plant(built / "source", tree, [])
    create("-B", built / "boot", "-D", built, "--chunk-size", "0x1000", built / "source")
    compare(rig, built / "boot", built)


@pytest.fixture
def many(rig: Rig) -> Path:
    """A mount of 100,000 entries in one directory, hard links, and a file of many chunks."""
    source = rig.base / "source"
    (source / "d").mkdir(parents=True)
    for i in range(100_000):
        (source / "d" / f"{i * 7919 % 100_000:06}").touch()
    (source / "big").write_bytes(bytes((i * i >> 8) % 256 for i in range(1 << 20)) * 3)
    (source / ("n" * 255)).write_bytes(b"long")
    os.link(source / "big", source / "again")
    create("-B", rig.base / "boot", "-D", rig.base, "--chunk-size", "0x1000", source)
    return rig.mount(rig.base / "boot", rig.base, "m", "--prefetch", "none")


def test_many_entries_and_large_files(rig: Rig, many: Path) -> None:
    names = os.listdir(many / "d")
    assert names == sorted(names)
    assert len(names) == 100_000
    assert os.listdir(many / "d") == names, "the order is stable"
    stream = os.open(many / "d", os.O_RDONLY)
    try:
        first = os.listdir(stream)
        os.lseek(stream, 0, os.SEEK_SET)
        assert os.listdir(stream) == first == names
    finally:
        os.close(stream)
    assert (many / ("n" * 255)).read_bytes() == b"long"
    with pytest.raises(OSError, match=os.strerror(errno.ENAMETOOLONG)):
        (many / ("n" * 256)).stat()
    assert not (many / "d" / "absent").exists()

    number = (many / "big").stat().st_ino
    found = subprocess.run(
        ["find", many, "-inum", str(number)], capture_output=True, text=True, check=True
    )
    assert sorted(found.stdout.split()) == [str(many / "again"), str(many / "big")]

    expected = (rig.base / "source" / "big").read_bytes()
    with (many / "big").open("rb") as f, mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as m:
        assert m[5000:200_000] == expected[5000:200_000]
    direct = os.open(many / "again", os.O_RDONLY | os.O_DIRECT)
    try:
        page = mmap.mmap(-1, 1 << 20)
        assert os.preadv(direct, [page], 4096 * 3) == 1 << 20
        assert page[:] == expected[4096 * 3 : 4096 * 3 + (1 << 20)]
    finally:
        os.close(direct)
    assert (many / "big").read_bytes() == expected
    with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
        (many / "new").touch()
    rig.run("umount", many)


def test_overlay_copies_up(rig: Rig, golden: Path) -> None:
    image = golden / "images" / "layers-zstd"
    lower = rig.mount(image / "image.boot", image / "blobs", "m", "--prefetch", "none")
    for name in ("upper", "work", "merged"):
        (rig.base / name).mkdir()
    merged = rig.base / "merged"
    options = f"lowerdir={lower},upperdir={rig.base}/upper,workdir={rig.base}/work"
    subprocess.run(["mount", "-t", "overlay", "none", "-o", options, str(merged)], check=True)
    before = (lower / "app" / "main.py").read_bytes()
    with (merged / "app" / "main.py").open("ab") as f:
        f.write(b"\nprint('copied up')\n")
    shutil.rmtree(merged / "app" / "data")
    done = subprocess.run(
        ["chroot", str(merged), "/usr/bin/python3.11", "/app/main.py"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.endswith("copied up\n")
    assert (lower / "app" / "main.py").read_bytes() == before
    subprocess.run(["umount", str(merged)], check=True)
    rig.run("umount", lower)


def test_rights_are_those_of_the_image(rig: Rig) -> None:
    """For everybody; trusted xattrs are listed to root alone."""
    source = rig.base / "source"
    source.mkdir()
    (source / "open").write_bytes(b"x")
    (source / "closed").write_bytes(b"x")
    (source / "closed").chmod(0o600)
    os.setxattr(source / "open", "trusted.t", b"1")
    os.setxattr(source / "open", "user.u", b"1")
    create("-B", rig.base / "boot", "-D", rig.base, source)
    rig.base.chmod(0o755)
    for parent in rig.base.parents[:2]:
        parent.chmod(0o755)
    mount = rig.mount(rig.base / "boot", rig.base)
    code = (
        "import os; os.setgid(1000); os.setuid(1000); "
        "print(open('open').read(), os.listxattr('open'), os.access('closed', os.R_OK))"
    )
    done = subprocess.run(
        ["python3", "-c", code], cwd=mount, capture_output=True, text=True, check=True
    )
    assert done.stdout == "x ['user.u'] False\n"
    assert sorted(os.listxattr(mount / "open")) == ["trusted.t", "user.u"]
    rig.run("umount", mount)


def test_what_was_read_is_read_again_without_a_message(rig: Rig, golden: Path) -> None:
    """Closes are none of our business: a message for each would cost more than the read."""
    image = golden / "images" / "layers-zstd"
    mount = rig.mount(image / "image.boot", image / "blobs")
    files = regular_files(mount)

    def read_all() -> int:
        for path in files:
            with path.open("rb", buffering=0) as f:  # with a buffer Python asks for a terminal
                f.readall()
        return int(rig.status()["requests"]["events"])

    first = read_all()
    assert read_all() - first < len(files) // 10
