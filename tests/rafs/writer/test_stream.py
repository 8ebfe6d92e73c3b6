"""An image out of a tar while it arrives is the image of the same tar in a file."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import stat
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from build_kit import image_tree
from tar_kit import DIR, HARD, LINK, header_with, member, tar

import rafs_v6
from rafs_v6._writer import lib
from rafs_v6.cli import main
from rafs_v6.format.erofs import Compressor, Digester
from rafs_v6.writer import blob_chunks, chunk_writer, stream
from rafs_v6.writer.chunk_writer import ChunkWriter
from rafs_v6.writer.cipher import XtsKey
from rafs_v6.writer.errors import SourceError
from rafs_v6.writer.options import ChunkOptions, CreateOptions
from rafs_v6.writer.overlay import WhiteoutSpec
from rafs_v6.writer.stream import create_from_stream
from rafs_v6.writer.tree import Node, Tree

CHUNK = 0x10000


class Slow:
    """Gives at most some bytes at a time, as pipes and sockets do; cannot be sought in."""

    def __init__(self, data: bytes, most: int) -> None:
        self._in, self._most = io.BytesIO(data), most

    def read(self, length: int, /) -> bytes:
        return self._in.read(min(length, self._most))


def _options(**more: object) -> CreateOptions:
    chunks: dict[str, object] = {"batch_size": 0, "cipher": None}
    chunks |= {key: more.pop(key) for key in list(more) if key in chunks}
    made = ChunkOptions(Compressor.ZSTD, Digester.SHA256, CHUNK, 3, 2, **chunks)  # type: ignore[arg-type]
    values: dict[str, object] = {
        "bootstrap": None, "blob": None, "blob_dir": None, "inline_meta": True,
        "whiteouts": WhiteoutSpec.OCI, **more,
    }  # fmt: skip
    return CreateOptions(made, **values)  # type: ignore[arg-type]


def _sparse() -> bytes:
    pax = {"GNU.sparse.size": "900000", "GNU.sparse.numblocks": "2"}
    pax |= {"GNU.sparse.map": "100,5,800000,4"}
    return member("sparse", data=b"abcdefghi", pax=pax)


BIG = os.urandom(300_000) + bytes(200_000)
LAYER = tar(
    member("d", DIR, mode=0o700), member("d/big", data=BIG), member("d/again", data=BIG),
    member("d/hard", HARD, link="d/big"), member("l", LINK, link="d"),
    member("l/small", data=b"small"), member("gone", data=b"x" * 70_000),
    member("gone", data=b"later"), _sparse(), member("empty"), member("d/.wh.white"),
)  # fmt: skip


@pytest.mark.parametrize("most", [1 << 20, 1000])
@pytest.mark.parametrize(
    "more",
    [{}, {"toc": True}, {"batch_size": 0x1000}, {"cipher": XtsKey.random()}, {"repeatable": True}],
    ids=str,
)
def test_a_stream_is_the_file(tmp_path: Path, more: dict[str, object], most: int) -> None:
    out = io.BytesIO()
    made = create_from_stream(Slow(LAYER, most), len(LAYER), _options(**more), out=out)
    data = out.getvalue()
    assert not out.closed
    assert (made.blob_sha256, made.blob_size) == (hashlib.sha256(data).hexdigest(), len(data))
    assert made.bootstrap is None
    blob = tmp_path / made.blobs[0]
    blob.write_bytes(data)
    source, boot = tmp_path / "t.tar", tmp_path / "boot"
    source.write_bytes(LAYER)
    create = ["create", "-t", "tar-rafs", "--digester", "sha256", "--chunk-size", hex(CHUNK)]
    create += ["--repeatable"] if "repeatable" in more else []
    assert main([*create, "-B", str(boot), "-D", str(tmp_path), str(source)]) == 0
    found = rafs_v6.open(blob, blobs=tmp_path)
    assert image_tree(found) == image_tree(rafs_v6.open(boot, blobs=tmp_path))
    assert found.read("/d/big") == BIG
    want = bytearray(900_000)
    want[100:105], want[800_000:800_004] = b"abcde", b"fghi"
    assert found.read("/sparse") == want
    assert found.read("/gone") == b"later"
    assert main(["check", str(blob), "-D", str(tmp_path)]) == 0


def test_a_bootstrap_of_its_own_a_parent_and_files(tmp_path: Path) -> None:
    low, up = tmp_path / "low.boot", tmp_path / "up.boot"
    below = tar(member("d", DIR, mode=0o711), member("d/white", data=b"w"), member("kept"))
    for data, boot, parent in ((below, low, None), (LAYER, up, low)):
        options = _options(
            inline_meta=False, bootstrap=boot, blob_dir=tmp_path, parent=parent,
        )  # fmt: skip
        made = create_from_stream(io.BytesIO(data), len(data), options)
        assert made.bootstrap == boot
        blob = tmp_path / made.blobs[-1]
        assert hashlib.sha256(blob.read_bytes()).hexdigest() == made.blob_sha256
    names = {os.fsdecode(p) for p, _ in rafs_v6.open(up).walk()}
    assert {"/kept", "/d/big"} <= names
    assert "/d/white" not in names


@pytest.mark.parametrize(
    "data",
    [LAYER[:100_000], LAYER[: 512 * 3 + 7], tar(member("../x")), LAYER + b"junk",
     tar(header_with(member("f")[:512], {124: b"00000000777\0"}))[:600]],
)  # fmt: skip
def test_a_bad_stream_is_refused_and_leaves_nothing(tmp_path: Path, data: bytes) -> None:
    options = _options(inline_meta=False, bootstrap=tmp_path / "boot", blob_dir=tmp_path)
    with pytest.raises(SourceError):
        create_from_stream(io.BytesIO(data), len(data), options)
    assert list(tmp_path.iterdir()) == []


def test_what_the_stream_raises_is_raised(tmp_path: Path) -> None:
    class Broken(Slow):
        def read(self, length: int, /) -> bytes:
            data = super().read(length)
            if not data:
                raise ConnectionResetError("gone")
            return data

    options = _options(inline_meta=False, bootstrap=tmp_path / "boot", blob_dir=tmp_path)
    with pytest.raises(ConnectionResetError):
        create_from_stream(Broken(LAYER[:200_000], 4096), len(LAYER), options)
    assert list(tmp_path.iterdir()) == []


def _through_a_pipe(tmp_path: Path, data: bytes, name: str, *words: str, text: bytes = b"") -> Path:
    """``nydus-image create`` of what comes through a named pipe; the bootstrap."""
    pipe, boot = tmp_path / f"{name}.fifo", tmp_path / f"{name}.boot"
    os.mkfifo(pipe)
    feeding = threading.Thread(target=pipe.write_bytes, args=(data,), daemon=True)
    feeding.start()
    create = ["create", "-t", "tar-rafs", "-B", str(boot), "-D", str(tmp_path), *words, str(pipe)]
    done = subprocess.run(
        [sys.executable, "-c", _GUARDED, *create], input=text, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    feeding.join(10)
    return boot


# A temporary file of any kind is an error, where the test says so.
_GUARDED = """
import os, sys, tempfile
from rafs_v6.cli import main
def refuse(*args, **options): raise OSError("a temporary file")
if "gz" not in sys.argv[-1] and "some" not in sys.argv[-1]: tempfile.TemporaryFile = refuse
sys.exit(main(sys.argv[1:]))
"""


def test_a_tar_from_a_pipe_lies_nowhere(tmp_path: Path) -> None:
    source, boot = tmp_path / "t.tar", tmp_path / "file.boot"
    source.write_bytes(LAYER)
    words = ["create", "-t", "tar-rafs", "-B", str(boot), "-D", str(tmp_path), str(source)]
    assert main(words) == 0
    want = image_tree(rafs_v6.open(boot, blobs=tmp_path))
    policy = ("--prefetch-policy", "fs")
    for name, data, words, text in (
        ("plain", LAYER, (), b""), ("all", LAYER, policy, b"/"),
        ("gz", gzip.compress(LAYER), (), b""), ("some", LAYER, policy, b"/d/again"),
    ):  # fmt: skip
        made = _through_a_pipe(tmp_path, data, name, *words, text=text)
        assert image_tree(rafs_v6.open(made, blobs=tmp_path)) == want, name
        assert main(["check", str(made), "-D", str(tmp_path)]) == 0


def test_a_stream_of_too_many_names_is_refused(tmp_path: Path) -> None:
    """Names that members imply: each directory on the way to them is one."""
    deep = [member(f"{i}/" + "/".join("a" * 2000), DIR) for i in range(150)]
    options = _options(inline_meta=False, bootstrap=tmp_path / "boot", blob_dir=tmp_path)
    with pytest.raises(SourceError, match="is it a bomb"):
        create_from_stream(io.BytesIO(tar(*deep)), None, options)


def test_whiteouts_that_are_kept_again_and_again_are_refused(tmp_path: Path) -> None:
    """Each time that their directory becomes a file and a directory they are gone through."""
    members = [member(f"b/.wh.{i}") for i in range(2000)]
    members += [member("b"), member("b/", DIR)] * 400
    options = _options(inline_meta=False, bootstrap=tmp_path / "boot", blob_dir=tmp_path)
    with pytest.raises(SourceError, match="is it a bomb"):
        create_from_stream(io.BytesIO(tar(*members)), None, options)


class _Between:
    """``lib``; ``then`` is called before each of the calls that see a batch."""

    def __init__(self, then: Callable[[], object]) -> None:
        self._then = then

    def __getattr__(self, name: str) -> object:
        if name in ("rafs_build_locate", "rafs_build_pack", "rafs_build_records"):
            self._then()
        return getattr(lib, name)


def test_rows_come_while_chunks_are_placed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next members are read beside the chunks of those before: here at each worst moment."""
    trees: list[Tree] = []
    calls: list[int] = []

    class Remembered(ChunkWriter):
        def __init__(self, tree: Tree, *args: Any) -> None:
            trees.append(tree)
            super().__init__(tree, *args)

    def another_row() -> None:
        calls.append(trees[0].add(0, b"", Node(stat.S_IFREG | 0o644)))

    monkeypatch.setattr(stream, "ChunkWriter", Remembered)
    for module in (blob_chunks, chunk_writer):
        monkeypatch.setattr(module, "lib", _Between(another_row))
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for number in range(10):
            info = tarfile.TarInfo(f"f{number}")
            info.size = 3
            tar.addfile(info, io.BytesIO(b"%03d" % number))
    layer.seek(0)
    options = CreateOptions(
        ChunkOptions(Compressor.ZSTD, Digester.BLAKE3, 1 << 20, 3, 1, 1 << 16),
        tmp_path / "boot", None, tmp_path,
    )  # fmt: skip
    stream.create_from_stream(layer, None, options)
    assert len(calls) >= 3
    with rafs_v6.open(tmp_path / "boot", blobs=tmp_path) as image:
        for number in range(10):
            assert image.read(image.resolve(f"/f{number}")) == b"%03d" % number
