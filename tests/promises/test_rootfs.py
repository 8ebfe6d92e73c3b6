"""A whole root file system, of this machine's files in five layers, converted in each mode.

The tree that our daemon mounts is the one that umoci unpacks.

``NYDUS_TEST_ROOTFS_MB`` is its size, 30 by default; 400 for the long run.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from oci_kit import Layer, Nydusify, peer, push_image
from servers import Pusher, docker_registry
from trees import shown

MEGABYTES = int(os.environ.get("NYDUS_TEST_ROOTFS_MB", "30"))
ROOTS = ("usr/bin", "usr/lib", "usr/share", "etc")

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="NOT ROOT: nothing can be mounted")


@dataclass(frozen=True)
class Image:
    """``tree``: what every path shows, as umoci unpacked it."""

    host: str
    source: str
    tree: dict[str, dict[str, Any]]


class StoredLayer(Layer):
    """Compressed quickly: there is much of it."""

    def stored(self) -> bytes:
        return gzip.compress(self.tar, 1, mtime=0)


def chosen(top: str, most: int) -> list[str]:
    """Paths below ``top`` of about ``most`` bytes, directories before what is in them."""
    found, size = [top], 0
    for directory, names, files in os.walk(f"/{top}"):
        names.sort()
        for name in sorted(files) + names:
            path = os.path.join(directory, name)
            status = os.lstat(path)
            # All directories: what a layer does not list has no time that is the same everywhere.
            length = status.st_size if stat.S_ISREG(status.st_mode) else 0
            if stat.S_ISSOCK(status.st_mode) or size + length > most:
                continue
            found.append(path.lstrip("/"))
            size += length
    return found


def tar_of(paths: list[str], root: str = "/") -> bytes:
    names = b"".join(os.fsencode(path) + b"\0" for path in paths)
    with tempfile.TemporaryFile() as listed:
        listed.write(names)
        listed.seek(0)
        return subprocess.run(
            ["tar", "--create", "--format=pax", "--xattrs", "--numeric-owner", "--no-recursion",
             "--sort=none", "--pax-option=delete=atime,delete=ctime", "-C", root, "--null",
             "--files-from=-"],
            stdin=listed, stdout=subprocess.PIPE, check=True,
        ).stdout  # fmt: skip


def changes(directory: Path, below: list[list[str]]) -> bytes:
    """The uppermost layer: it removes, replaces, links and marks, as builds of images do."""
    files = [p for paths in below for p in paths if os.path.isfile(f"/{p}")]
    directories = [p for p in below[2] if os.path.isdir(f"/{p}") and p.count("/") == 2]
    for path in files[::17]:
        parent, name = os.path.split(path)
        made = directory / parent
        made.mkdir(parents=True, exist_ok=True)
        (made / f".wh.{name}").touch()
    for path in files[5::29]:
        made = directory / path
        made.parent.mkdir(parents=True, exist_ok=True)
        made.write_text(f"another {path}\n")
        made.chmod(0o4711)
        os.chown(made, 1000, 70000)
    for path in directories[::5]:
        (directory / path).mkdir(parents=True, exist_ok=True)
        (directory / path / ".wh..wh..opq").touch()
        (directory / path / "instead").write_text("instead")
    first = directory / "usr" / "first"
    first.parent.mkdir(parents=True, exist_ok=True)
    first.write_bytes(os.urandom(3_000_001))
    os.setxattr(first, "user.b", b"two")
    os.setxattr(first, "user.a", b"one")
    os.link(first, directory / "usr" / "second")
    os.mkfifo(directory / "usr" / "pipe")
    os.mknod(directory / "usr" / "device", stat.S_IFCHR | 0o600, os.makedev(5, 1))
    with (directory / "usr" / "sparse").open("wb") as sparse:
        sparse.truncate(9_000_000)
    os.symlink("../nowhere", directory / "usr" / ("l" * 200))
    names = sorted(
        os.path.relpath(os.path.join(top, name), directory)
        for top, names, files in os.walk(directory) for name in names + files
    )  # fmt: skip
    return tar_of(names, str(directory))


def tree_of(root: Path) -> dict[str, dict[str, Any]]:
    found = {"/": {**shown(root), "mtime": None}}
    for top, names, files in os.walk(root):
        for name in names + files:
            path = os.path.join(top, name)
            found["/" + os.path.relpath(path, root)] = shown(Path(path))
    return found


def unpacked(nydusify: Nydusify, source: str, directory: Path) -> dict[str, dict[str, Any]]:
    directory.mkdir()
    layout = f"{directory}/layout:it"
    for words in (
        [peer("skopeo"), "--insecure-policy", "copy", "--src-tls-verify=false",
         f"docker://{source}", f"oci:{layout}"],
        [peer("umoci"), "unpack", "--image", layout, str(directory / "bundle")],
    ):  # fmt: skip
        done = subprocess.run(
            words, capture_output=True, text=True, check=False, env=nydusify.environment()
        )
        assert done.returncode == 0, done.stderr
    tree = tree_of(directory / "bundle" / "rootfs")
    shutil.rmtree(directory)
    return tree


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """As large as the image: not kept."""
    directory = tmp_path_factory.mktemp("rootfs")
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def nydusify(here: Path) -> Nydusify:
    directory = here / "run"
    directory.mkdir()
    return Nydusify(directory)


@pytest.fixture(scope="module")
def image(here: Path, nydusify: Nydusify) -> Iterator[Image]:
    most = MEGABYTES * 1_000_000 // len(ROOTS)
    paths = [chosen(top, most) for top in ROOTS]
    with docker_registry(here) as host:
        with Pusher(host, "root") as push:
            layers = [StoredLayer(tar_of(["usr", *one])) for one in paths[:3]]
            layers.append(StoredLayer(tar_of(paths[3])))
            with tempfile.TemporaryDirectory(dir=here) as directory:
                layers.append(StoredLayer(changes(Path(directory), paths)))
            push_image(push, "v1", layers)
        source = f"{host}/root:v1"
        yield Image(host, source, unpacked(nydusify, source, here / "unpacked"))


def assert_same(found: dict[str, dict[str, Any]], expected: dict[str, dict[str, Any]]) -> None:
    assert sorted(found.keys() ^ expected.keys()) == []
    different = {path for path, entry in found.items() if entry != expected[path]}
    lines = [f"{p}: {found[p]} is not {expected[p]}" for p in sorted(different)]
    assert not different, f"{len(lines)}\n" + "\n".join(lines[:20])


MODES = {
    "zstd": (), "zran": ("--oci-ref",), "lz4": ("--compressor", "lz4_block"),
    "none": ("--compressor", "none"), "batch": ("--batch-size", "0x100000"),
    "small": ("--chunk-size", "0x10000"), "prefetch": ("--prefetch-dir", "/usr/bin"),
    "merged": ("--merge-platform",),
    "dict": ("--chunk-dict", "bootstrap:registry:HOST/root:n-zstd"),
}  # fmt: skip
_SHORT = ("zstd", "zran", "merged")


@pytest.mark.parametrize(
    "mode", [m if m in _SHORT else pytest.param(m, marks=pytest.mark.long) for m in MODES]
)
def test_each_mode_shows_the_tree(nydusify: Nydusify, image: Image, mode: str) -> None:
    target = f"{image.host}/root:n-{mode}"
    words = [word.replace("HOST", image.host) for word in MODES[mode]]
    nydusify.run("convert", "--source", image.source, "--target", target, *words)
    with nydusify.mounted(target) as root:
        assert_same(tree_of(root), image.tree)
    nydusify.run("check", "--source", image.source, "--target", target)


@pytest.mark.long
def test_blobs_in_a_directory_show_the_tree(
    nydusify: Nydusify, image: Image, here: Path
) -> None:
    config = f'{{"dir": "{here}/blobs"}}'
    words = ("--backend-type", "localfs", "--backend-config", config)
    target = f"{image.host}/local:n"
    nydusify.run("convert", "--source", image.source, "--target", target, *words)
    with nydusify.mounted(target, *words) as root:
        assert_same(tree_of(root), image.tree)


def test_an_optimized_image_shows_the_tree(nydusify: Nydusify, image: Image) -> None:
    source, target = f"{image.host}/root:n-zstd", f"{image.host}/root:fast"
    programs = [p for p in image.tree if p.startswith("/usr/bin/")][::7]
    (nydusify.directory / "list").write_text("\n".join(programs))
    nydusify.run("optimize", "--source", source, "--target", target, "--prefetch-files", "list")
    with nydusify.mounted(target) as root:
        assert_same(tree_of(root), image.tree)


def test_reversed_it_unpacks_to_the_tree(nydusify: Nydusify, image: Image, here: Path) -> None:
    source, target = f"{image.host}/root:n-zstd", f"{image.host}/root:back"
    nydusify.run("convert", "--source", source, "--target", target, "--reverse")
    assert_same(unpacked(nydusify, target, here / "again"), image.tree)


@pytest.mark.long
def test_the_same_digests_elsewhere(nydusify: Nydusify, image: Image) -> None:
    from oci_kit import get

    target = f"{image.host}/elsewhere:n"
    nydusify.run(
        "convert", "--source", image.source, "--target", target, "--work-dir", "another/place",
        env={"TMPDIR": str(nydusify.directory)},
    )  # fmt: skip
    digests = {
        hashlib.sha256(get(image.host, repo, tag).content).hexdigest()
        for repo, tag in (("root", "n-zstd"), ("elsewhere", "n"))
    }
    assert len(digests) == 1
