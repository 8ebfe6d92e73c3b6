"""The library as its users have it: open, walk, resolve, read, close; errors with their paths."""

from __future__ import annotations

import gc
import io
import os
import shutil
import threading
import tracemalloc
from pathlib import Path

import pytest

import rafs_v6
from rafs_v6.cli import main

DATA = bytes(range(256)) * 1100  # several chunks, the last one short


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with ``boot`` and ``blobs``."""
    base = tmp_path_factory.mktemp("built")
    tree = base / "tree"
    (tree / "usr/lib").mkdir(parents=True)
    (tree / "etc").mkdir()
    (tree / "usr/lib/os-release").write_bytes(DATA)
    (tree / "etc/os-release").symlink_to("../usr/lib/os-release")
    (tree / "lib").symlink_to("/usr/lib")
    (tree / "up").symlink_to("../../../../usr")
    (tree / "loop").symlink_to("loop")
    (tree / "gone").symlink_to("nowhere")
    (tree / "empty").write_bytes(b"")
    (tree / "ümlaut").write_bytes(b"u")
    os.mkfifo(tree / "fifo")
    os.setxattr(tree / "empty", "user.k", b"v")
    for i in range(700):  # a directory of several blocks
        (tree / "etc" / f"entry-{i:04}").write_bytes(b"")
    options = ["-B", str(base / "boot"), "-D", str(base / "blobs"), "--chunk-size", "0x10000"]
    (base / "blobs").mkdir()
    assert main(["create", "-t", "dir-rafs", *options, str(tree)]) == 0
    return base


@pytest.fixture
def image(built: Path) -> rafs_v6.Image:
    return rafs_v6.open(built / "boot", blobs=built / "blobs")


def test_names_are_of_the_type_that_was_asked_with(image: rafs_v6.Image) -> None:
    assert image.listdir("/usr") == ["lib"]
    assert image.listdir(b"usr/") == [b"lib"]
    assert "ümlaut" in image.listdir("/")
    assert image.listdir("/") == sorted(image.listdir("/"), key=os.fsencode)
    assert len(image.listdir("/etc")) == 701
    assert image.readlink("/lib") == "/usr/lib"
    assert image.readlink(b"/lib") == b"/usr/lib"
    assert [(n, i.is_dir) for n, i in image.scandir("/usr")] == [("lib", True)]


def test_links_are_resolved_within_the_image(image: rafs_v6.Image) -> None:
    assert image.resolve("/etc/os-release") == "/usr/lib/os-release"
    assert image.resolve(b"//lib/../lib/./os-release") == b"/usr/lib/os-release"
    assert image.resolve("/up/lib") == "/usr/lib", ".. ends at the root"
    assert image.resolve("/../..") == "/"
    assert image.lookup("/lib").is_symlink
    assert image.lookup("/lib/").is_dir
    assert image.lookup("/lib/os-release").size == len(DATA), "a link on the way is followed"
    assert image.read("/lib/os-release") == DATA
    for i in (0, 350, 699):
        assert image.lookup(f"/etc/entry-{i:04}").is_reg


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/none", FileNotFoundError), ("/etc/none", FileNotFoundError),
        ("/gone", FileNotFoundError),
        ("/empty/x", NotADirectoryError), ("/empty/..", NotADirectoryError),
        ("/empty/", NotADirectoryError), ("/loop", OSError), ("/loop/x", OSError),
        ("/nul\0", FileNotFoundError), (b"/etc/\xff", FileNotFoundError),
    ],
)  # fmt: skip
def test_a_path_that_leads_nowhere_is_named(
    image: rafs_v6.Image, path: str | bytes, error: type[OSError]
) -> None:
    with pytest.raises(error) as caught:
        image.resolve(path)
    assert caught.value.filename == path
    assert caught.value.errno


@pytest.mark.parametrize("path", ["/etc/os-release", "/fifo", "/loop"])
def test_only_regular_files_are_read(image: rafs_v6.Image, path: str) -> None:
    inode = image.lookup(path)
    for call in (image.read, image.open, image.iter_file, image.blob_ranges):
        with pytest.raises(rafs_v6.NotAFileError, match=path) as caught:
            call(path)
        assert isinstance(caught.value, OSError)
        assert not isinstance(caught.value, IsADirectoryError)
        with pytest.raises(rafs_v6.NotAFileError, match=f"inode {inode.nid}"):
            call(inode)
    for call in (image.read, image.open, image.iter_file):
        with pytest.raises(IsADirectoryError, match="/etc"):
            call("/etc")
    with pytest.raises(NotADirectoryError, match="/fifo"):
        image.listdir("/fifo")
    with pytest.raises(OSError, match="/fifo"):
        image.readlink("/fifo")


def test_an_open_file_is_a_seekable_stream(image: rafs_v6.Image) -> None:
    with image.open("/usr/lib/os-release") as f:
        assert f.seekable()
        assert f.readable()
        assert not f.writable()
        assert f.seek(-5, os.SEEK_END) == len(DATA) - 5
        assert f.read() == DATA[-5:]
        assert f.read(1) == b""
        f.seek(65530)
        assert f.read(20) == DATA[65530:65550], "over the border of two chunks"
        assert f.seek(1 << 40) == 1 << 40
        assert f.read() == b""
        with pytest.raises(OSError, match="negative"):
            f.raw.seek(-1)
        with pytest.raises(ValueError, match="whence"):
            f.raw.seek(0, 7)
        buffer = bytearray(10)
        f.seek(3)
        assert f.readinto(buffer) == 10
        assert buffer == DATA[3:13]
    with pytest.raises(ValueError, match="closed"):
        f.read()
    with io.TextIOWrapper(image.open("/empty")) as text:
        assert text.read() == ""
    assert image.xattrs("/empty") == {b"user.k": b"v"}


def test_an_image_is_given_in_any_form(built: Path, tmp_path: Path) -> None:
    data = (built / "boot").read_bytes()
    blob = next((built / "blobs").iterdir())
    asked = []

    def read_at(blob_id: str, offset: int, length: int) -> bytes:
        asked.append((blob_id, offset, length))
        return blob.read_bytes()[offset : offset + length]

    sized = rafs_v6.Blobs(read_at, lambda _: blob.stat().st_size)
    for given in (built / "boot", str(built / "boot"), data, bytearray(data), io.BytesIO(data)):
        for blobs in (built / "blobs", str(built / "blobs"), read_at, sized):
            with rafs_v6.open(given, blobs=blobs) as image:
                assert image.read("/usr/lib/os-release") == DATA
    assert {blob_id for blob_id, _, _ in asked} == {blob.name}
    with rafs_v6.open(data) as image:
        assert image.lookup("/etc").is_dir
        with pytest.raises(rafs_v6.BlobsError, match=blob.name):
            image.read("/usr/lib/os-release")
    with pytest.raises(FileNotFoundError):
        rafs_v6.open(tmp_path / "none")
    with pytest.raises(IsADirectoryError):
        rafs_v6.open(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(rafs_v6.ImageError, match="not a regular file"):
        rafs_v6.open(tmp_path / "fifo")


@pytest.mark.parametrize("options", [(), ("--features", "blob-toc"), ("--compressor", "none")])
@pytest.mark.parametrize("content", [b"", DATA])
def test_a_blob_holds_its_bootstrap(
    tmp_path: Path, options: tuple[str, ...], content: bytes
) -> None:
    tree, blob = tmp_path / "tree", tmp_path / "blob"
    tree.mkdir()
    if content:
        (tree / "f").write_bytes(content)
    create = ["create", "-t", "dir-rafs", "--blob-inline-meta", "--blob", str(blob)]
    assert main([*create, *options, str(tree)]) == 0
    with blob.open("rb") as stream:
        for given in (blob, blob.read_bytes(), stream):
            with rafs_v6.open(given) as image:
                assert [p for p, _ in image.walk()] == ([b"/", b"/f"] if content else [b"/"])
                if content:
                    assert image.read("/f") == content, "the blob is known without being given"


def test_errors_say_which_file_and_which_path(built: Path, tmp_path: Path) -> None:
    for junk in (b"", b"\xa5" * 9000, (built / "boot").read_bytes()[:-700]):
        path = tmp_path / "junk"
        path.write_bytes(junk)
        with pytest.raises(rafs_v6.ImageError, match=f"^{path}: ") as caught:
            rafs_v6.open(path)
        assert caught.value.path == str(path)
    name = next((built / "blobs").iterdir()).name
    data = bytearray((built / "blobs" / name).read_bytes())
    data[10] ^= 1
    (tmp_path / name).write_bytes(data)
    image = rafs_v6.open(built / "boot", blobs=tmp_path)
    for call in (image.read, lambda p: image.open(p).read()):
        with pytest.raises(rafs_v6.ImageError, match=f"^/usr/lib/os-release: blob {name}"):
            call("/usr/lib/os-release")
    short = rafs_v6.open(built / "boot", blobs=lambda *_: b"short")
    with pytest.raises(rafs_v6.ImageError):
        short.read("/usr/lib/os-release")


def _is_mapped(path: Path) -> bool:
    return str(path) in Path("/proc/self/maps").read_text()


def test_a_closed_image_says_so(built: Path, tmp_path: Path) -> None:
    boot = Path(shutil.copy(built / "boot", tmp_path))
    with rafs_v6.open(boot, blobs=built / "blobs") as image:
        assert "boot" in repr(image)
        assert image.read("/usr/lib/os-release") == DATA
        f = image.open("/usr/lib/os-release")
        assert _is_mapped(boot)
    assert image.closed
    assert "closed" in repr(image)
    assert not _is_mapped(boot)
    image.close()
    for call in (image.walk, lambda: image.read("/empty"), lambda: image.listdir("/"), f.read):
        with pytest.raises(ValueError, match="closed"):
            call()


def test_an_image_is_freed_without_the_collector(built: Path, tmp_path: Path) -> None:
    boot = Path(shutil.copy(built / "boot", tmp_path))
    gc.disable()
    try:
        image = rafs_v6.open(boot, blobs=built / "blobs")
        image.read("/usr/lib/os-release")
        del image
        assert not _is_mapped(boot)
    finally:
        gc.enable()


def test_blob_ranges_are_what_reading_asks_for(built: Path) -> None:
    blob = next((built / "blobs").iterdir())
    asked: list[tuple[int, int]] = []

    def read_at(_: str, offset: int, length: int) -> bytes:
        asked.append((offset, offset + length))
        return blob.read_bytes()[offset : offset + length]

    image = rafs_v6.open(built / "boot", blobs=read_at)
    ranges = image.blob_ranges("/usr/lib/os-release")
    asked.clear()
    image.read("/usr/lib/os-release")
    assert {r.blob_id for r in ranges} == {blob.name}
    assert min(a for a, _ in asked) == ranges[0].offset
    assert all(any(r.offset <= a and b <= r.offset + r.size for r in ranges) for a, b in asked)
    assert image.blob_ranges("/empty") == []


@pytest.mark.parametrize("turn", range(3))
def test_threads_share_an_image(image: rafs_v6.Image, turn: int) -> None:
    start = threading.Barrier(4)
    wrong: list[object] = []

    def reader() -> None:
        start.wait()
        try:
            for _ in range(20):
                image._units.clear()  # so that all decode at the same time
                if image.read("/usr/lib/os-release") != DATA:
                    wrong.append("bytes")
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=reader) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, turn


def test_decoded_data_are_bounded(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for i in range(6):
        (tree / f"f{i}").write_bytes(bytes([i]) * (12 << 20))
    (tmp_path / "blobs").mkdir()
    options = ["-B", str(tmp_path / "b"), "-D", str(tmp_path / "blobs")]
    create = ["create", "-t", "dir-rafs", "--chunk-size", "0x1000000"]
    assert main([*create, *options, str(tree)]) == 0
    with rafs_v6.open(tmp_path / "b", blobs=tmp_path / "blobs") as image:
        tracemalloc.start()
        try:
            for i in range(6):
                with image.open(f"/f{i}") as f:
                    assert f.read(10) == bytes([i]) * 10
            assert tracemalloc.get_traced_memory()[0] < 40 << 20
        finally:
            tracemalloc.stop()


def test_every_promised_name_is_explained() -> None:
    assert rafs_v6.__version__
    for name in rafs_v6.__all__:
        thing = getattr(rafs_v6, name)
        if name in ("__version__", "ReadAt"):
            continue
        doc = thing.__doc__ or ""
        assert doc, f"{name} is not explained"
        assert not doc.startswith(f"{name}("), f"{name} has only the docstring of dataclasses"
    for name, thing in vars(rafs_v6.Image).items():
        if not name.startswith("_"):
            assert thing.__doc__ or name == "closed", f"Image.{name} is not explained"
