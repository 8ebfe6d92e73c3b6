"""`create` over the format's options, on trees with every kind of entry, and on hostile tars."""

from __future__ import annotations

import gzip
import io
import os
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest
from build_kit import flatten, image_tree, mounted

import rafs_v6
from rafs_v6.cli import main


def _add(tar: tarfile.TarFile, name: str, data: bytes = b"", **fields: object) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    tar.addfile(info, io.BytesIO(data))


def _tar(path: Path, *entries: tuple[str, bytes, dict[str, object]]) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data, fields in entries:
            _add(tar, name, data, **fields)
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Sizes around block and chunk, holes, links, devices, odd names, old times, xattrs."""
    root = tmp_path / "tree"
    (root / "d" / "empty").mkdir(parents=True)
    for size in (0, 1, 4095, 4096, 4097, (1 << 16) + 1, (1 << 20) + 1):
        (root / "d" / f"s{size}").write_bytes(os.urandom(size // 2) + b"a" * (size - size // 2))
    (root / "+before.dot").write_bytes(b"x")
    (root / ("n" * 255)).write_bytes(b"long")
    with (root / "holes").open("wb") as f:
        f.seek(3 << 20)
        f.write(b"end")
    os.link(root / "holes", root / "d" / "again")
    (root / "link").symlink_to("x" * 4000)
    os.mknod(root / "null", 0o644 | stat.S_IFCHR, os.makedev(259, 300))
    os.mkfifo(root / "fifo")
    (root / "many").mkdir()
    for i in range(500):
        (root / "many" / f"file-{i:04}").write_bytes(b"%d" % (i % 50))
    os.utime(root / "d" / "s1", ns=(0, -1_500_000_001))
    for name, value in (("user.b", b"1"), ("user.a", b""), ("security.z", b"\0\xff")):
        os.setxattr(root / "d" / "s4096", name, value)
    return root


@pytest.mark.parametrize(
    "options",
    [
        ["--compressor", "zstd", "--digester", "blake3"],
        ["--compressor", "lz4_block", "--digester", "sha256", "--chunk-size", "0x1000"],
        ["--compressor", "none", "--features", "blob-toc", "--chunk-size", "0x10000"],
        ["--compressor", "zstd", "--compression-level", "9", "--chunk-size", "0x1000000"],
    ],
)
def test_directory_read_back_and_mounted(tree: Path, tmp_path: Path, options: list[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    boot = out / "image.boot"
    assert main(["create", "-B", str(boot), "-D", str(out), *options, str(tree)]) == 0
    image = rafs_v6.open(boot, blobs=out)
    with mounted(boot, flatten(image, out, tmp_path), tmp_path / "mnt") as at:
        for top, dirs, files in os.walk(tree):
            for name in [*dirs, *files]:
                source = Path(top, name)
                shown = at / source.relative_to(tree)
                a, b = source.lstat(), shown.lstat()
                assert (a.st_mode, a.st_uid, a.st_gid, a.st_mtime_ns, a.st_rdev) == (
                    b.st_mode, b.st_uid, b.st_gid, b.st_mtime_ns, b.st_rdev,
                ), source  # fmt: skip
                if stat.S_ISREG(a.st_mode):
                    assert a.st_nlink == b.st_nlink
                    data = source.read_bytes()
                    assert shown.read_bytes() == data
                    assert image.read("/" + str(source.relative_to(tree))) == data
                if stat.S_ISLNK(a.st_mode):
                    assert source.readlink() == shown.readlink()
                for key in os.listxattr(source, follow_symlinks=False):
                    assert os.getxattr(shown, key, follow_symlinks=False) == os.getxattr(
                        source, key, follow_symlinks=False
                    )
        assert sorted(p.name for p in at.iterdir()) == sorted(p.name for p in tree.iterdir())


def test_same_input_same_bytes_on_any_number_of_threads(tree: Path, tmp_path: Path) -> None:
    seen = set()
    for threads in ("1", "3"):
        out = tmp_path / threads
        out.mkdir()
        assert main([
            "create", "-B", str(out / "boot"), "-D", str(out), "--threads", threads, str(tree)
        ]) == 0  # fmt: skip
        seen.add(tuple((p.name, p.read_bytes()) for p in sorted(out.iterdir())))
    assert len(seen) == 1


def test_pax_times_xattrs_and_sparse(tmp_path: Path) -> None:
    pax = {"mtime": "-1.5", "SCHILY.xattr.user.k": "v"}
    sparse = {
        "GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.size": "9000",
        "GNU.sparse.numblocks": "1", "GNU.sparse.map": "8000,4",
    }  # fmt: skip
    tar = _tar(
        tmp_path / "t.tar",
        ("./a", b"hello", {"pax_headers": pax}),
        ("./b", b"", {"type": tarfile.LNKTYPE, "linkname": "a"}),
        ("./s", b"data", {"pax_headers": sparse}),
    )
    packed = tmp_path / "t.tar.gz"
    packed.write_bytes(gzip.compress(tar.read_bytes()))
    boot = tmp_path / "boot"
    assert main(
        ["create", "-t", "targz-rafs", "-B", str(boot), "-D", str(tmp_path), str(packed)]
    ) == 0  # fmt: skip
    image = rafs_v6.open(boot, blobs=tmp_path)
    a = image.lookup("/a")
    assert (a.mtime, a.mtime_nsec, a.nlink) == (-2, 500_000_000, 2)
    assert image.bootstrap.xattrs(a) == {b"user.k": b"v"}
    assert image.read("/s") == bytes(8000) + b"data" + bytes(996)
    assert image_tree(image)["/b"] == image_tree(image)["/a"]


def _cut_gzip(path: Path) -> None:
    path.write_bytes(gzip.compress(os.urandom(100_000))[:50_000])


def _cut_tar(path: Path) -> None:
    _tar(path, ("a", b"x" * 5000, {}))
    path.write_bytes(path.read_bytes()[:2000])


def _second_header_broken(path: Path) -> None:
    _tar(path, ("a", b"", {}), ("b", b"", {}))
    data = bytearray(path.read_bytes())
    data[512 + 148] ^= 1
    path.write_bytes(data)


_HOSTILE = {
    "parent": lambda p: _tar(p, ("a/../../b", b"x", {})),
    "absolute parent": lambda p: _tar(p, ("/../b", b"x", {})),
    "link to nothing": lambda p: _tar(p, ("b", b"", {"type": b"1", "linkname": "c"})),
    "link to itself": lambda p: _tar(p, ("b", b"", {"type": b"1", "linkname": "b"})),
    "link to outside": lambda p: _tar(p, ("b", b"", {"type": b"1", "linkname": "../c"})),
    "long name": lambda p: _tar(p, ("n" * 256, b"", {})),
    "below a file": lambda p: _tar(p, ("f", b"", {}), ("f/x", b"", {})),
    "below endless links": lambda p: _tar(
        p,
        ("l", b"", {"type": b"2", "linkname": "m"}),
        ("m", b"", {"type": b"2", "linkname": "l"}),
        ("l/x", b"", {}),
    ),
    "huge time": lambda p: _tar(p, ("a", b"", {"pax_headers": {"mtime": "1e999999"}})),
    "cut gzip": _cut_gzip,
    "cut tar": _cut_tar,
    "broken header": _second_header_broken,
}


@pytest.mark.parametrize("name", _HOSTILE)
def test_hostile_tar_is_refused_and_leaves_nothing(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "hostile"
    _HOSTILE[name](source)
    out = tmp_path / "out"
    out.mkdir()
    for kind in ("targz-rafs", "targz-ref", "tar-tarfs"):
        argv = ["create", "-t", kind, "-B", str(out / "boot"), "-D", str(out), str(source)]
        assert main(argv) == 1
        assert "nydus-image create: " in capsys.readouterr().err
        assert list(out.iterdir()) == []


@pytest.mark.parametrize("batch", [[], ["--batch-size", "0x1000"]])
def test_what_encryption_would_cut_is_refused_what_it_pads_is_read_back(
    batch: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree, out, boot = tmp_path / "tree", tmp_path / "out", tmp_path / "boot"
    tree.mkdir()
    out.mkdir()
    create = ["create", "--encrypt", *batch, "-B", str(boot), "-D", str(out), str(tree)]
    looks_padded = bytes(range(15)) + b"\x01\x78\x90"
    (tree / "f").write_bytes(looks_padded)
    assert main(create) == 1
    assert "/f: 18 bytes that end as if encryption had padded them" in capsys.readouterr().err
    assert not boot.exists()
    assert list(out.iterdir()) == []
    for size in (*range(1, 20), 4096, 5000):
        (tree / "f").write_bytes(looks_padded[:size].ljust(size, b"."))
        (tree / "g").write_bytes(os.urandom(size))
        if size == 18:
            continue
        assert main(create) == 0
        image = rafs_v6.open(boot, blobs=out)
        assert image.read("/f") == (tree / "f").read_bytes()
        assert image.read("/g") == (tree / "g").read_bytes()


@pytest.mark.parametrize("compressor", ["lz4_block", "zstd"])
@pytest.mark.parametrize("batch", [[], ["--batch-size", "0x1000"]])
def test_what_encryption_makes_as_long_as_it_was_is_stored_raw(
    compressor: str, batch: list[str], tmp_path: Path
) -> None:
    """16 to 18 bytes that shrink below 16 are padded to 18."""
    tree, boot = tmp_path / "tree", tmp_path / "boot"
    tree.mkdir()
    create = ["create", "--encrypt", "--compressor", compressor, *batch, "-B", str(boot)]
    for size in range(1, 24):
        (tree / "f").write_bytes(bytes(size))
        assert main([*create, "-D", str(tmp_path), str(tree)]) == 0
        assert rafs_v6.open(boot, blobs=tmp_path).read("/f") == bytes(size), size


def test_prefetched_files_come_first_and_are_in_the_table(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patterns = io.BytesIO(b"/many/file-0001\n/d\n/d/s1\nrelative\n/missing\n")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(patterns))
    boot = tmp_path / "boot"
    assert main(
        ["create", "--prefetch-policy", "fs", "-B", str(boot), "-D", str(tmp_path), str(tree)]
    ) == 0  # fmt: skip
    image = rafs_v6.open(boot, blobs=tmp_path)
    names = [image.lookup(p).nid for p in ("/many/file-0001", "/d")]
    assert list(image.bootstrap.prefetch_nids) == names
    first = next(iter(image.bootstrap.chunks(image.lookup("/many/file-0001"))))
    assert first.chunk_index == 0


def _members(path: Path) -> dict[str, tuple[object, ...]]:
    out: dict[str, tuple[object, ...]] = {}
    with tarfile.open(path) as tar:
        for info in tar:
            name = info.name.removeprefix("./") or "."
            data = None if info.issym() else tar.extractfile(info)
            xattrs = {k: v for k, v in info.pax_headers.items() if k.startswith("SCHILY")}
            out[name] = (
                info.isdir(), info.mode, info.uid, info.mtime, info.devmajor, info.devminor,
                info.linkname if info.issym() else "", data.read() if data else b"",
                sorted(xattrs.items()),
            )  # fmt: skip
    return out


def test_full_disk_leaves_nothing(tree: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", small], check=True)
    try:
        (small / "out").mkdir()
        out = small / "out"
        boot = out / "boot"
        assert main(
            ["create", "--compressor", "none", "-B", str(boot), "-D", str(out), str(tree)]
        ) == 1  # fmt: skip
        assert list(out.iterdir()) == []
    finally:
        subprocess.run(["umount", small], check=True)


def test_unpack_gives_the_tar_back(tmp_path: Path) -> None:
    pax = {"SCHILY.xattr.user.k": "v", "SCHILY.xattr.security.b": "\udcff\x00"}
    source = _tar(
        tmp_path / "t.tar",
        (".", b"", {"type": tarfile.DIRTYPE, "mode": 0o755, "mtime": 3}),
        ("d", b"", {"type": tarfile.DIRTYPE, "mode": 0o700, "mtime": 5}),
        ("d/a", os.urandom(300_000), {"uid": 70_000, "mtime": 7, "pax_headers": pax}),
        ("d/b", b"", {"type": tarfile.LNKTYPE, "linkname": "d/a"}),
        ("l", b"", {"type": tarfile.SYMTYPE, "linkname": "../x", "mode": 0o777}),
        ("n", b"", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 300}),
    )
    boot, again = tmp_path / "boot", tmp_path / "again.tar"
    blob = tmp_path / "blob"
    assert main(
        ["create", "-t", "tar-rafs", "-B", str(boot), "-b", str(blob), str(source)]
    ) == 0  # fmt: skip
    assert main(["unpack", str(boot), "--blob", str(blob), "--output", str(again)]) == 0
    want, got = _members(source), _members(again)
    want["d/b"] = want["d/a"]  # a hard link's own header says little of the file
    got["d/b"] = got["d/a"]
    assert got == want


def test_check_names_a_damaged_chunk(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    boot, blob = tmp_path / "boot", tmp_path / "blobs"
    blob.mkdir()
    assert main(
        ["create", "--compressor", "none", "-B", str(boot), "-D", str(blob), str(tree)]
    ) == 0  # fmt: skip
    assert main(["check", str(boot), "-D", str(blob)]) == 0
    path = next(blob.iterdir())
    data = bytearray(path.read_bytes())
    data[10_000] ^= 1
    path.write_bytes(data)
    assert main(["check", str(boot), "-D", str(blob)]) == 1
    assert "chunk" in capsys.readouterr().err


def test_what_is_missing_is_named(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    boot, nowhere = tmp_path / "boot", tmp_path / "nowhere"
    assert main(["create", "-B", str(boot), "-D", str(nowhere), str(tree)]) == 1
    assert f"{nowhere} is not a directory" in capsys.readouterr().err
    nowhere.write_bytes(bytes(8192))
    assert main(["merge", "-B", str(boot), str(nowhere)]) == 1
    assert f"{nowhere}: neither a bootstrap" in capsys.readouterr().err
    assert not boot.exists()


def test_both_files_are_on_the_disk_before_either_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the blob before the bootstrap that names it."""
    source, out = tmp_path / "tree", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    (source / "f").write_bytes(os.urandom(100_000))
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def synced(fd: int) -> None:
        fsync(fd)
        done.append("synced")

    def appeared(self: Path, target: Path) -> Path:
        done.append(target.name)
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", appeared)
    assert main(["create", "-B", str(out / "boot"), "-D", str(out), str(source)]) == 0
    (blob,) = [path.name for path in out.iterdir() if path.name != "boot"]
    assert done == ["synced", "synced", blob, "boot"]
