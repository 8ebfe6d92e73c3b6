"""What an image says of its files, as guesses use it."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from built import build_image

import rafs_v6
from nydus_fscache._core import lib
from nydus_fscache.core.files import files_of
from nydus_fscache.fetch import links as links_module
from nydus_fscache.fetch.links import Links
from rafs_v6.reader.blobs import directory_blobs

FILES = {
    "lib/a.py": b"a" * 5000,
    "lib/b.py": b"b" * 5000,
    "lib/__pycache__/a.pyc": b"c" * 5000,
    "lib/libz.so.1.2": b"d" * 5000,
    "lib/libc.so": b"e" * 5000,
    "lib64/ld-linux-x86-64.so.2": b"h" * 5000,
    "lib/x86_64-linux-gnu/libc.so.6": b"i" * 5000,
    "bin/tool": b"f" * 5000,
    "bin/large": b"g" * 70000 + bytes(range(256)) * 600,
}


def _image(base: Path) -> tuple[Path, Any]:
    build_image(
        base / "tree", FILES, "-t", "dir-rafs", "-B", base / "boot", "-D", base,
        "--chunk-size", "0x10000",
    )  # fmt: skip
    bootstrap = rafs_v6.Bootstrap.from_file(base / "boot")
    (info,) = bootstrap.blobs
    size = (base / info.blob_id).stat().st_size
    chunks = rafs_v6.ChunkMap.load(
        info, directory_blobs(base).read_at, bootstrap, blob_size=lambda _: size
    )
    return base / "boot", chunks


def test_each_chunk_has_the_directory_and_kind_of_the_file_that_begins_with_it(
    tmp_path: Path,
) -> None:
    path, chunks = _image(tmp_path)
    bootstrap = rafs_v6.Bootstrap.from_file(path)
    directories, kinds = files_of(bootstrap.data, 0, chunks.nchunks)
    kind, first = {}, set()
    for name, data in FILES.items():
        refs = list(bootstrap.chunks(bootstrap.lookup(f"/{name}")))
        parent = bootstrap.lookup("/" + name.rpartition("/")[0])
        assert directories[refs[0].chunk_index] == parent.nid
        kind[name] = kinds[refs[0].chunk_index]
        first.add(refs[0].chunk_index)
        assert len(refs) == -(-len(data) // 0x10000)
    assert kind["lib/a.py"] == kind["lib/b.py"] != kind["lib/__pycache__/a.pyc"]
    assert kind["lib/libz.so.1.2"] == kind["lib/libc.so"]
    assert kind["bin/tool"] == kind["bin/large"] != kind["lib/a.py"]
    assert [bool(k) for k in kinds] == [i in first for i in range(len(kinds))]


def test_of_another_device_there_is_nothing_and_of_no_bootstrap_an_error(tmp_path: Path) -> None:
    path, _ = _image(tmp_path)
    assert not any(files_of(memoryview(path.read_bytes()), 1, 8)[1])
    with pytest.raises(OSError, match="no files"):
        files_of(memoryview(bytes(8192)), 0, 8)


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [("a.py", "b.py", True), ("a.py", "a.pyc", False), ("libz.so.1.2", "x.so", True),
     ("tool", ".profile", True), ("a.sort", "a.so", False), ("x.", "y", True)],
)  # fmt: skip
def test_kinds_of_names(one: str, other: str, equal: bool) -> None:
    numbers = [lib.nf_kind_of(name.encode(), len(name)) for name in (one, other)]
    assert (numbers[0] == numbers[1]) == equal
    assert all(numbers)


class _Object:
    """As much of a cache object as images use."""

    def __init__(self, blob_id: str, chunks: Any) -> None:
        self.source = SimpleNamespace(blob_id=blob_id)
        self.chunks = chunks
        self.followers: dict[str, Any] = {}
        self.loaded: list[int] = []
        self.kinds: list[int] = []
        self.told = threading.Event()

    def size(self, unit: int) -> int:
        return 5000

    def load_program(self, units: Any) -> None:
        self.loaded += units

    def expect_kinds(self) -> None:
        self.is_expecting = True

    def know_kinds(self, kinds: Any) -> None:
        self.kinds = list(kinds)
        self.told.set()


def test_kinds_are_known_when_an_image_is_first_read_and_not_before(tmp_path: Path) -> None:
    path, chunks = _image(tmp_path)
    (info,) = rafs_v6.Bootstrap.from_file(path).blobs
    obj: Any = _Object(info.blob_id, chunks)
    links = Links()
    links.add("digest", path, [obj])
    assert not obj.kinds
    obj.followers["digest"].demanded(obj, 0)
    assert obj.told.wait(10)
    assert len(obj.kinds) == chunks.nunits
    assert len(set(obj.kinds)) >= 4
    links.remove("digest", [obj])
    assert not obj.followers


def test_the_first_read_of_an_image_brings_its_loader_and_its_c_library(tmp_path: Path) -> None:
    path, chunks = _image(tmp_path)
    bootstrap = rafs_v6.Bootstrap.from_file(path)
    obj: Any = _Object(bootstrap.blobs[0].blob_id, chunks)
    links = Links()
    links.add("digest", path, [obj])
    for _ in range(2):
        obj.followers["digest"].demanded(obj, 0)
    links._worker.shutdown()
    wanted = ("lib64/ld-linux-x86-64.so.2", "lib/x86_64-linux-gnu/libc.so.6")
    refs = [next(iter(bootstrap.chunks(bootstrap.lookup(f"/{name}")))) for name in wanted]
    assert obj.loaded == [chunks.units_of(r.flat_off, r.size).start for r in refs]


def test_a_bootstrap_that_is_gone_costs_guesses_only(tmp_path: Path) -> None:
    path, chunks = _image(tmp_path)
    obj: Any = _Object("blob", chunks)
    links = Links()
    links.add("digest", path, [obj])
    path.unlink()
    obj.followers["digest"].demanded(obj, 0)
    links._worker.shutdown()
    assert not obj.kinds


def test_the_command_line_of_a_reader_is_read_a_few_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, chunks = _image(tmp_path)
    (info,) = rafs_v6.Bootstrap.from_file(path).blobs
    obj: Any = _Object(info.blob_id, chunks)
    asked: list[int] = []

    def command_of(pid: int) -> tuple[list[bytes], bytes]:
        asked.append(pid)
        return [b"/bin/large"], b"/"

    monkeypatch.setattr(links_module, "command_of", command_of)
    links = Links()
    links.add("digest", path, [obj])
    for pid in (0, 7, 7, 7, 7, *range(100, 200)):
        obj.followers["digest"].demanded(obj, pid)
    links._worker.shutdown()
    assert asked[:4] == [7, 7, 7, 100]
    assert len(asked) <= links_module.LOOKS_AT_READER * links_module.MOST_READERS
    (large, *_) = rafs_v6.Bootstrap.from_file(path).chunks(
        rafs_v6.Bootstrap.from_file(path).lookup("/bin/large")
    )
    assert chunks.units_of(large.flat_off, 1).start in obj.loaded


def test_what_comes_while_the_last_is_looked_at_is_looked_at_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, chunks = _image(tmp_path)
    obj: Any = _Object("blob", chunks)
    links = Links()
    links.add("digest", path, [obj])
    image, seen = obj.followers["digest"], list[int]()

    def follow(bootstrap: object, modules: Any) -> None:
        while modules:
            seen.append(modules.popleft()[1])
        if seen == [1]:  # nothing is left, and this look has not ended
            image.came(obj, [2])

    monkeypatch.setattr(image._chase, "follow", follow)
    for unit in (1, 3):
        image.came(obj, [unit])
        links._worker.submit(lambda: None).result()
    links._worker.shutdown()
    assert sorted(seen) == [1, 2, 3]
