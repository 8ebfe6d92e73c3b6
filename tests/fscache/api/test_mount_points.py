"""What the snapshotter's directories mean, and mounts over mounts, with the kernel's."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from nydus_fscache.api.nydusd.layer_view import LayerViews, hide, layer_of
from nydus_fscache.api.nydusd.mount_points import mapped_over
from nydus_fscache.kernel import mountinfo
from nydus_fscache.kernel.mount import mount_erofs, umount
from nydus_fscache.kernel.mount_trees import bind_with_ids
from rafs_v6.cli import main as nydus_image

SNAPSHOT = Path("/r/snapshots/7")
BOOTSTRAP = SNAPSHOT / "fs/image/image.boot"


@pytest.mark.parametrize(
    ("point", "source", "found"),
    [
        ("/r/mnt/7", BOOTSTRAP, SNAPSHOT / "fs"),
        ("/r/snapshots/7/mnt", BOOTSTRAP, SNAPSHOT / "fs"),
        ("/r/mnt/7-userns-200000", BOOTSTRAP, None),
        ("/r/snapshots/7/mnt-200000", BOOTSTRAP, None),
        ("/r/mnt/8", BOOTSTRAP, None),
        ("/elsewhere/7", BOOTSTRAP, None),
        ("/r/mnt/7", Path("/r/snapshots/7/fs/image.boot"), None),
        ("/r/mnt/7", Path("image.boot"), None),
    ],
)
def test_a_layer_is_known_by_its_place(point: str, source: Path, found: Path | None) -> None:
    assert layer_of(Path(point), source) == found


class Node:
    """An image of ``tree`` at M/7, as the snapshotter lays it out."""

    def __init__(self, base: Path, tree: Path) -> None:
        self.point, self.layer = base / "mnt/7", base / "snapshots/7/fs"
        self.source = self.layer / "image/image.boot"
        self.views = LayerViews(base / "views", logging.getLogger("test"))
        for directory in (self.point, self.source.parent):
            directory.mkdir(parents=True)
        words = ["create", str(tree), "-B", str(self.source), "-D", str(base)]
        assert nydus_image(words) == 0
        self.mount()

    def mount(self) -> None:
        """Its metadata; no test reads the data, which are not as the kernel wants them."""
        fd = os.open(self.source, os.O_RDONLY)
        blob = next(path for path in self.layer.parents[2].iterdir() if len(path.name) == 64)
        device = os.open(blob, os.O_RDONLY)
        try:
            mount_erofs(fd, [device], self.point)
        finally:
            os.close(fd)
            os.close(device)

    def show(self) -> None:
        self.views.show(self.point, self.source)


@pytest.fixture(params=["plain", "with-image"])
def node(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Node]:
    if os.geteuid() != 0:
        pytest.skip("NOT ROOT: no mounts")
    tree = tmp_path / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc" / "file").write_text("data")
    if request.param == "with-image":
        (tree / "image").mkdir()
        (tree / "image" / "own").touch()
    made = Node(tmp_path, tree)
    yield made
    hide(made.layer)
    while mountinfo.find_mount(made.point) is not None:
        umount(made.point, lazy=True)


def test_a_view_shows_the_image_and_the_bootstrap(node: Node) -> None:
    size = node.source.stat().st_size
    node.show()
    assert (node.layer / "etc").is_dir()
    assert node.source.stat().st_size == size
    with pytest.raises(OSError, match="Read-only"):
        (node.layer / "image" / "new").touch()
    table = len(mountinfo.mounts())
    node.show()
    assert len(mountinfo.mounts()) == table, "it was there"
    hide(node.layer)
    assert os.listdir(node.layer) == ["image"]
    assert node.source.stat().st_size == size
    assert not os.listdir(node.layer.parents[2] / "views")


def test_a_layer_with_other_files_is_left_alone(node: Node) -> None:
    (node.layer / "more").touch()
    node.show()
    assert sorted(os.listdir(node.layer)) == ["image", "more"]


def test_a_view_of_an_image_that_is_gone_is_replaced(node: Node) -> None:
    node.show()
    before = mountinfo.find_mount(node.layer)
    umount(node.point)
    node.mount()
    node.show()
    after = mountinfo.find_mount(node.layer)
    assert before is not None
    assert after is not None
    assert before.source != after.source or before.device != after.device


def test_owners_are_mapped_over_the_mount(node: Node) -> None:
    assert not mapped_over(node.point)
    bind_with_ids(node.point, node.point, (0, 200_000, 65_536))
    assert mapped_over(node.point)
    found = (node.point / "etc").stat()
    assert (found.st_uid, found.st_gid) == (200_000, 200_000)
    assert stat.S_ISDIR(found.st_mode)
    umount(node.point)
    assert (node.point / "etc").stat().st_uid == 0
