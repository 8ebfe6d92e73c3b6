"""``check`` finds and names every one of these faults, in images of ours and of upstream's."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

import rafs_v6
from rafs_v6.cli import main
from rafs_v6.format.erofs import BlobFeatures
from rafs_v6.reader.blobs import directory_blobs
from rafs_v6.tools.check.image import CheckReport, check_image

SB, EXT, SLOT = 1024, 1152, 1408


class Victim:
    """A bootstrap and its first blob as bytes to be damaged, and where things are in them."""

    def __init__(self, boot: Path, blobs: Path) -> None:
        image = rafs_v6.Bootstrap.from_file(boot)
        self.boot = bytearray(boot.read_bytes())
        self.tables, self.info = image.tables, image.blobs[0]
        self.blob = bytearray((blobs / self.info.blob_id).read_bytes())
        self.others = [blobs / b.blob_id for b in image.blobs[1:]]
        self.table = self.tables.ext.blob_table_offset
        self.header = self.info.ci_offset + self.info.ci_compressed_size
        nodes = [inode for _, inode in image.walk()]
        self.root = image.root
        self.file = next(
            n for n in nodes
            if n.is_reg and n.size and next(iter(image.chunks(n))).blob_index == 0
        )  # fmt: skip
        self.xattr = next((n for n in nodes if n.xattr_size), None)
        self.link = next(n for n in nodes if n.is_symlink and n.layout == 2)
        self.index = -(-self.file.tail // 8) * 8
        names = struct.unpack_from("<H", self.boot, self.root.tail + 8)[0]
        self.dirent = self.root.tail + names - 12
        self.toc = len(self.blob) - self.info.toc_size

    def put(self, form: str, at: int, value: int, *, blob: bool = False) -> None:
        struct.pack_into("<" + form, self.blob if blob else self.boot, at, value)

    def flip(self, at: int, *, blob: bool = False) -> None:
        (self.blob if blob else self.boot)[at] ^= 0x5A

    def write(self, where: Path) -> tuple[Path, Path]:
        blobs = where / "blobs"
        blobs.mkdir()
        (where / "boot").write_bytes(self.boot)
        (blobs / self.info.blob_id).write_bytes(self.blob)
        for other in self.others:
            (blobs / other.name).symlink_to(other)
        return where / "boot", blobs

    def check(self, where: Path) -> CheckReport:
        boot, blobs = self.write(where)
        return check_image(boot, directory_blobs(blobs))


def _foreign(v: Victim) -> None:
    v.blob[:] = os.urandom(len(v.blob))


Fault = Callable[[Victim], object]
BOOTSTRAP: dict[str, tuple[str, Fault]] = {
    "magic": ("superblock.magic", lambda v: v.flip(SB)),
    "checksum": ("superblock.checksum", lambda v: v.put("I", SB + 4, 1)),
    "not RAFS": ("superblock.feature_compat", lambda v: v.put("I", SB + 8, 0)),
    "compat": ("superblock.feature_compat", lambda v: v.put("I", SB + 8, 0x40000001)),
    "more compat": ("superblock.feature_compat", lambda v: v.put("I", SB + 8, 0xC0000000)),
    "block size": ("superblock.blkszbits", lambda v: v.put("B", SB + 12, 14)),
    "extension": ("superblock.reserved", lambda v: v.put("B", SB + 13, 1)),
    "root": ("bootstrap", lambda v: v.put("H", SB + 14, 65535)),
    "inos": ("superblock.inos", lambda v: v.put("Q", SB + 16, 3)),
    "meta": ("superblock.meta_blkaddr", lambda v: v.put("I", SB + 40, 1 << 24)),
    "shared xattrs": ("superblock.xattr_blkaddr", lambda v: v.put("I", SB + 44, 1)),
    "incompat": ("superblock.feature_incompat", lambda v: v.put("I", SB + 80, 0x1C)),
    "devices": ("superblock.extra_devices", lambda v: v.put("H", SB + 86, 9)),
    "slot offset": ("superblock.devt_slotoff", lambda v: v.put("H", SB + 88, 12)),
    "flags": ("ext-superblock.flags", lambda v: v.put("Q", EXT, 1 << 10)),
    "chunk size": ("ext-superblock.chunk_size", lambda v: v.put("I", EXT + 20, 12345)),
    "reserved": ("ext-superblock.reserved", lambda v: v.flip(EXT + 100)),
    "blob table": ("blob-table.offset", lambda v: v.put("Q", EXT + 8, 4100)),
    "blob table size": ("blob-table.size", lambda v: v.put("I", EXT + 16, 100)),
    "chunk table": ("chunk-table.outside", lambda v: v.put("Q", EXT + 32, 80 << 30)),
    "device tag": ("device-slot.tag", lambda v: v.flip(SLOT + 3)),
    "device blocks": ("device-slot.blocks", lambda v: v.put("I", SLOT + 64, 0)),
    "device mapped": ("device-slot.mapped_blkaddr", lambda v: v.put("I", SLOT + 68, 1)),
    "blob index": ("blob-table.blob_index", lambda v: v.put("I", v.table + 64, 5)),
    "blob chunk size": ("blob-table.chunk_size", lambda v: v.put("I", v.table + 68, 0x2000)),
    "blob chunks": ("blob-table.ci_size", lambda v: v.put("I", v.table + 72, 1)),
    "compressor": ("blob-table.compressor", lambda v: v.put("I", v.table + 76, 9)),
    "digester": ("blob-table.digester", lambda v: v.put("I", v.table + 80, 9)),
    "features": ("blob-table.features", lambda v: v.put("I", v.table + 84, 0x4000F001)),
    "flat size": ("blob-table.uncompressed_size", lambda v: v.put("Q", v.table + 96, 77)),
    "cipher": ("blob-table.cipher", lambda v: v.put("I", v.table + 216, 1)),
    "inode format": ("inode", lambda v: v.put("H", v.file.offset, 3)),
    "inode mode": ("inode", lambda v: v.put("H", v.file.offset + 4, 0)),
    "inode links": ("inode.nlink", lambda v: v.put("I", v.file.offset + 44, 77)),
    "dirent name": ("dirent", lambda v: v.put("H", v.root.tail + 8, 1)),
    "dirent type": ("dirent.file_type", lambda v: v.put("B", v.dirent + 10, 5)),
    "dots": ("dirent.dots", lambda v: v.put("Q", v.root.tail, v.root.nid + 1)),
    "symlink": ("symlink", lambda v: v.put("B", v.link.tail, 0)),
    "xattr": ("xattr", lambda v: v.xattr and v.put("B", v.xattr.offset + 64 + 13, 99)),
    "chunk's device": ("chunk-index.device", lambda v: v.put("B", v.index + 2, 99)),
    "chunk's index": ("chunk-index.index", lambda v: v.put("B", v.index + 3, 99)),
    "chunk's address": ("chunk-index.address", lambda v: v.put("I", v.index + 4, 1 << 30)),
    "chunk format": ("chunk-index", lambda v: v.put("I", v.file.offset + 16, 0x21)),
    "chunk digest": (
        "chunk.digest", lambda v: v.flip(v.tables.ext.chunk_table_offset + 31),
    ),
    "chunk order": (
        "chunk-table.order", lambda v: v.put("B", v.tables.ext.chunk_table_offset, 255),
    ),
    "chunk's blob": (
        "chunk-table.blob_index", lambda v: v.put("I", v.tables.ext.chunk_table_offset + 32, 9),
    ),
    "chunk record": (
        "chunk-table.index", lambda v: v.put("I", v.tables.ext.chunk_table_offset + 72, 9999),
    ),
    "cut bootstrap": ("bootstrap.size", lambda v: v.boot.__delitem__(slice(-100, None))),
}  # fmt: skip
BLOB: dict[str, tuple[str, Fault]] = {
    "header magic": ("blob-meta.header.magic", lambda v: v.flip(v.header, blob=True)),
    "last magic": ("blob-meta.header.magic2", lambda v: v.flip(v.header + 4092, blob=True)),
    "compressor": (
        "blob-meta.header.ci_compressor",
        lambda v: v.put("I", v.header + 8, 7, blob=True),
    ),
    "count": ("blob-meta.header.entries", lambda v: v.put("I", v.header + 12, 9999, blob=True)),
    "offset": ("blob-meta.header.ci_offset", lambda v: v.put("Q", v.header + 16, 7, blob=True)),
    "stored": (
        "blob-meta.header.ci_compressed_size",
        lambda v: v.put("Q", v.header + 24, 7, blob=True),
    ),
    "plain": (
        "blob-meta.header.ci_uncompressed_size",
        lambda v: v.put("Q", v.header + 32, 7, blob=True),
    ),
    "reserved": ("blob-meta.header.reserved", lambda v: v.flip(v.header + 999, blob=True)),
    "entries": ("blob-meta.", lambda v: v.flip(v.info.ci_offset + 9, blob=True)),
    "chunk bytes": ("chunk.", lambda v: v.flip(v.info.data_size // 2, blob=True)),
    "truncated": ("blob.truncated", lambda v: v.blob.__delitem__(slice(-5000, None))),
    "foreign": ("blob.digest", _foreign),
    "a byte": ("blob.digest", lambda v: v.flip(100, blob=True)),
}
TOC: dict[str, tuple[str, Fault]] = {
    "toc magic": ("toc.magic", lambda v: v.flip(len(v.blob) - 512, blob=True)),
    "toc length": ("toc.size", lambda v: v.flip(len(v.blob) - 512 + 130, blob=True)),
    "toc checksum": ("tar-header.checksum", lambda v: v.flip(len(v.blob) - 360, blob=True)),
    "toc digest": ("toc.digest", lambda v: v.flip(v.toc + 60, blob=True)),
    "entry digest": ("toc.entry.digest", lambda v: v.flip(v.toc + 128 + 30, blob=True)),
    "entry offset": ("toc.entry.offset", lambda v: v.flip(v.toc + 128 + 56, blob=True)),
    "entry size": ("toc.entry.size", lambda v: v.flip(v.toc + 128 + 64, blob=True)),
    "entry flags": ("toc.entry", lambda v: v.flip(v.toc + 128, blob=True)),
    "entry name": ("toc.entry.missing", lambda v: v.flip(v.toc + 128 + 8, blob=True)),
    "header of data": (
        "tar-header.name", lambda v: v.flip(v.info.ci_offset - 512, blob=True)
    ),
    "header of map": ("tar-header.magic", lambda v: v.flip(v.header + 4096 + 257, blob=True)),
    "header of digests": (
        "tar-header.size",
        lambda v: v.flip(v.header + 4608 + 32 * v.info.chunk_count + 130, blob=True),
    ),
    "digests": ("chunk-digests.entry", lambda v: v.flip(v.header + 4608 + 5, blob=True)),
}  # fmt: skip
TRAILING = {"more": ("blob.trailing", lambda v: v.blob.extend(b"x"))}


@pytest.fixture(scope="session")
def kinds(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Bootstrap and blobs by name: built here without and with TOC, and golden."""
    out = tmp_path_factory.mktemp("kinds")
    tree = out / "tree"
    (tree / "d").mkdir(parents=True)
    for i in range(6):
        (tree / "d" / f"f{i}").write_bytes(b"%d" % i * 20_000 + os.urandom(3000))
    (tree / "a").write_bytes(b"hello")
    os.setxattr(tree / "a", "user.k", b"v")
    (tree / "link").symlink_to("d/f0")
    images = golden / "images"
    made = {
        name: (images / name / "image.boot", images / name / "blobs")
        for name in ("one-lz4", "layers-zstd", "tarfs")
    }
    for name, options in (("plain", ["--compressor", "none"]), ("toc", ["--features", "blob-toc"])):
        blobs = out / name
        blobs.mkdir()
        boot = out / f"{name}.boot"
        assert main(["create", "-B", str(boot), "-D", str(blobs), *options, str(tree)]) == 0
        made[name] = boot, blobs
    return made


CASES = [
    (kind, name, *fault)
    for kind, faults in (
        ("toc", BOOTSTRAP), ("one-lz4", BOOTSTRAP), ("plain", BLOB | TRAILING), ("toc", BLOB | TOC),
        ("one-lz4", BLOB | TRAILING), ("tarfs", {k: BLOB[k] for k in ("a byte", "truncated")}),
        ("layers-zstd", {k: BLOB[k] for k in ("a byte", "count")}),
    )
    for name, fault in faults.items()
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "fault", "harm"), [(k, f, h) for k, _, f, h in CASES],
    ids=[f"{k}: {n}" for k, n, _, _ in CASES],
)  # fmt: skip
def test_fault_is_found(
    kinds: dict[str, tuple[Path, Path]], tmp_path: Path, kind: str, fault: str, harm: Fault
) -> None:
    victim = Victim(*kinds[kind])
    harm(victim)
    found = victim.check(tmp_path).faults
    assert any(f"{f.name}.".startswith(fault.rstrip(".") + ".") for f in found), found
    assert all(f.place and f.text for f in found)


def test_all_faults_at_once(
    kinds: dict[str, tuple[Path, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one image, seen as a user sees it."""
    victim = Victim(*kinds["toc"])
    several = ("checksum", "inos", "device blocks", "xattr", "symlink", "inode links")
    wanted = {BOOTSTRAP[name][0] for name in several} | {"toc.entry.offset", "chunk.digest"}
    for name in several:
        BOOTSTRAP[name][1](victim)
    TOC["entry offset"][1](victim)
    BOOTSTRAP["chunk digest"][1](victim)
    boot, blobs = victim.write(tmp_path)
    report = tmp_path / "report.json"
    assert main(["check", str(boot), "-D", str(blobs), "-J", str(report)]) == 1
    document = json.loads(report.read_text())
    assert wanted <= {fault["name"] for fault in document["faults"]}
    assert all(fault["hint"] and fault["place"] for fault in document["faults"])
    shown = capsys.readouterr().err
    assert all(f"{name}: " in shown for name in wanted)


def test_prefetch_table(golden: Path, tmp_path: Path) -> None:
    image = golden / "images" / "one-prefetch"
    victim = Victim(image / "image.boot", image / "blobs")
    victim.put("I", victim.tables.ext.prefetch_table_offset + 4, 3)
    assert [f.name for f in victim.check(tmp_path).faults] == ["prefetch-table.entry"]


def test_good_images_have_no_faults(
    golden: Path, kinds: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    for image in (golden / "images").iterdir():
        found = check_image(image / "image.boot", directory_blobs(image / "blobs"))
        assert not found.faults, image
        assert found.data is not None
        tarfs = bool(found.bootstrap and found.bootstrap.blobs[0].features & BlobFeatures.TARFS)
        assert (found.data.unverified == found.data.decoded) == tarfs
    for boot, blobs in kinds.values():
        assert check_image(boot, directory_blobs(blobs)).faults == []
