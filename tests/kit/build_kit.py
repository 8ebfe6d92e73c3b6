"""Trees as comparable values: of an image that rafs_v6 reads, of a mount, of the golden JSON."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.util
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import rafs_v6
from rafs_v6._codec import ffi, lib
from rafs_v6.format.erofs import ChunkRecord

_KINDS = {
    stat.S_IFREG: "reg",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "lnk",
    stat.S_IFCHR: "chr",
    stat.S_IFBLK: "blk",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "sock",
}
_MS_RDONLY, _MNT_DETACH = 1, 2


def image_tree(image: rafs_v6.Image) -> dict[str, dict[str, object]]:
    """The tree in the form of golden/tree_manifest.py, read without the kernel."""
    boot, out = image.bootstrap, {}
    for path, inode in image.walk():
        kind = _KINDS[stat.S_IFMT(inode.mode)]
        entry: dict[str, object] = {
            "type": kind,
            "mode": f"{stat.S_IMODE(inode.mode):04o}",
            "uid": inode.uid,
            "gid": inode.gid,
            "mtime": inode.mtime,
        }
        if kind != "dir":
            entry["nlink"] = inode.nlink
        if kind in ("chr", "blk"):
            entry["rdev"] = f"{os.major(inode.rdev)}:{os.minor(inode.rdev)}"
        if kind == "lnk":
            entry["target"] = boot.read_link(inode).decode("utf-8", "surrogateescape")
        if kind == "reg":
            entry["size"] = inode.size
            entry["sha256"] = hashlib.sha256(b"".join(image.iter_file(inode))).hexdigest()
        xattrs = {k.decode(): v.hex() for k, v in boot.xattrs(inode).items()}
        if xattrs:
            entry["xattrs"] = xattrs
        out[path.decode("utf-8", "surrogateescape")] = entry
    return out


def golden_tree(path: Path) -> dict[str, dict[str, object]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {line.pop("path"): line for line in lines}


def differences(got: dict[str, dict[str, object]], want: dict[str, dict[str, object]]) -> list[str]:
    """Paths that differ; a null time in the golden tree is one that upstream cannot keep."""
    out = [f"only one has {p}" for p in sorted(got.keys() ^ want.keys())]
    for path in sorted(got.keys() & want.keys()):
        a, b = dict(got[path]), dict(want[path])
        if b.get("mtime") is None:
            a.pop("mtime", None)
            b.pop("mtime", None)
        if a != b:
            out.append(f"{path}: {a} != {b}")
    return out


def manifest(golden: Path, root: Path) -> dict[str, dict[str, object]]:
    """The tree below ``root``, as golden/tree_manifest.py sees a mounted image."""
    spec = importlib.util.spec_from_file_location("tree_manifest", golden / "tree_manifest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    out = {}
    for top, dirs, files in os.walk(os.fsencode(root)):
        for name in [b"", *dirs, *files]:
            rel = os.path.normpath(os.path.join(os.path.relpath(top, os.fsencode(root)), name))
            entry = module.entry(os.fsencode(root), b"" if rel == b"." else rel)
            out[entry.pop("path")] = entry
    return out


def digests(boot: rafs_v6.Bootstrap) -> set[str]:
    table = boot.chunk_table
    return {ChunkRecord.unpack(table, at).digest.hex() for at in range(0, len(table), 80)}


def flatten(image: rafs_v6.Image, blobs: Path, out: Path) -> list[Path]:
    """Every blob as the flat file that the kernel takes for a device (format.md 1.18)."""
    flat = []
    decoder = ffi.gc(lib.rafs_decoder_new(), lib.rafs_decoder_free)
    for info in image.bootstrap.blobs:
        chunks = image.chunk_map(info.index)
        target = out / f"flat{info.index}"
        stored = (blobs / info.blob_id).read_bytes()
        with target.open("wb") as f:
            f.truncate(info.uncompressed_size)
            for i in range(chunks.nunits):
                unit = chunks.unit(i)
                plain = bytearray(unit.ulen)
                piece = stored[unit.coff : unit.coff + unit.clen]
                assert not lib.rafs_unit_decode(
                    decoder, chunks.blob, i, piece, len(piece), ffi.from_buffer(plain), len(plain)
                )
                for k in range(unit.first, unit.first + unit.count):
                    chunk = chunks.blob.chunks[k]
                    data = plain[chunk.unit_off : chunk.unit_off + chunk.usize]
                    os.pwrite(f.fileno(), data, chunk.uoff)
        flat.append(target)
    return flat


@contextlib.contextmanager
def mounted(boot: Path, devices: list[Path], at: Path) -> Iterator[Path]:
    """The image in the kernel's own EROFS driver, without loop devices."""
    at.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    data = ",".join(f"device={d}" for d in devices).encode()
    if libc.mount(os.fsencode(boot), os.fsencode(at), b"erofs", _MS_RDONLY, data):
        raise OSError(ctypes.get_errno(), f"mounting {boot}: {os.strerror(ctypes.get_errno())}")
    try:
        yield at
    finally:
        libc.umount2(os.fsencode(at), _MNT_DETACH)
