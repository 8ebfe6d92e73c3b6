"""Images that refer to a tar or tar.gz: against the golden ones, the kernel, and hostile gzip."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from itertools import pairwise
from pathlib import Path

import pytest
from build_kit import differences, digests, flatten, golden_tree, image_tree, manifest, mounted
from built import NYDUS_IMAGE

import rafs_v6
from rafs_v6.cli import main
from rafs_v6.format.erofs import BlobFeatures, Compressor, Digester


def _create(kind: str, source: Path, out: Path, *options: str) -> rafs_v6.Image:
    """Build in ``out``, where the source also lies under its blob id."""
    boot = out / "image.boot"
    assert main(["create", "-t", kind, "-B", str(boot), "-D", str(out), *options, str(source)]) == 0
    image = rafs_v6.open(boot, blobs=out)
    shutil.copyfile(source, out / image.bootstrap.blobs[0].blob_id)
    return image


def _shown(image: rafs_v6.Image, out: Path, golden: Path) -> dict[str, dict[str, object]]:
    """The tree in the kernel's EROFS driver."""
    with mounted(out / "image.boot", flatten(image, out, out), out / "mnt") as at:
        return manifest(golden, at)


def test_merged_zran_layers_equal_golden(golden: Path, layers: list[Path], tmp_path: Path) -> None:
    blobs, built = tmp_path / "blobs", []
    blobs.mkdir()
    metas = []
    for layer in layers:
        before = set(blobs.iterdir())
        assert main([
            "create", "-t", "targz-ref", "--blob-inline-meta", "--features", "blob-toc",
            "-D", str(blobs), str(layer),
        ]) == 0  # fmt: skip
        meta = (set(blobs.iterdir()) - before).pop()
        metas.append(meta.name)
        built.append(blobs / layer.name)
        shutil.copyfile(meta, built[-1])
    boot = tmp_path / "image.boot"
    # As nydus-snapshotter calls it: sources under the original ids, digests of our blobs.
    assert main([
        "merge", "-B", str(boot), "--blob-digests", ",".join(metas), *map(str, built)
    ]) == 0  # fmt: skip
    for layer in layers:
        shutil.copyfile(layer, blobs / layer.name)
    image = rafs_v6.open(boot, blobs=blobs)
    want = golden / "images" / "layers-zran"
    theirs = rafs_v6.open(want / "image.boot")
    # Theirs has no chunks of files that an upper layer hides.
    assert digests(theirs.bootstrap) <= digests(image.bootstrap)
    ours = {b.blob_id: (b.features, b.digester) for b in image.bootstrap.blobs}
    assert ours == {b.blob_id: (b.features, b.digester) for b in theirs.bootstrap.blobs}
    assert differences(image_tree(image), golden_tree(want / "expected.jsonl")) == []


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("estargz-ref", "estargz-ref", []),
        ("estargz-ref", "estargz-ref", ["--chunk-size", "0x1000", "--digester", "blake3"]),
        ("tarfs", "tar-tarfs", []),
        ("tarfs", "tar-tarfs", ["--chunk-size", "0x1000"]),
        ("tarfs", "targz-ref", ["--features", "blob-toc"]),
    ],
)
def test_layer3_equals_golden(
    golden: Path, tmp_path: Path, name: str, kind: str, options: list[str]
) -> None:
    want = golden / "images" / name
    theirs = rafs_v6.open(want / "image.boot")
    source = want / "blobs" / theirs.bootstrap.blobs[0].blob_id
    image = _create(kind, source, tmp_path, *options)
    ours = image.bootstrap.blobs[0]
    assert ours.blob_id == source.name
    assert bool(ours.features & BlobFeatures.ZRAN) == (kind == "estargz-ref")
    if not options:
        assert digests(image.bootstrap) == digests(theirs.bootstrap)
        assert ours.digester is Digester.SHA256
    expected = golden_tree(want / "expected.jsonl")
    assert differences(image_tree(image), expected) == []
    assert differences(_shown(image, tmp_path, golden), expected) == []


def _layer(path: Path, plain: bytes) -> Path:
    """A tar with files of random, compressible and no bytes, one of them twice."""
    noise = os.urandom(700_000)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in {
            "a": noise, "b": plain, "c": b"", "d/e": b"0" * 9_000_000, "d/f": noise, "g": b"end"
        }.items():  # fmt: skip
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def _one_member(tar: bytes) -> bytes:
    return gzip.compress(tar)


def _many_members(tar: bytes) -> bytes:
    # Cut anywhere: inside headers, inside files, and members of nothing at all.
    cuts = [*range(0, len(tar), 123_457), len(tar)]
    members = [gzip.compress(tar[a:b], 1) for a, b in pairwise(cuts)]
    return gzip.compress(b"").join(members)


def _named_member_and_padding(tar: bytes) -> bytes:
    out = io.BytesIO()
    with gzip.GzipFile("layer.tar", "wb", fileobj=out) as f:
        f.write(tar)
    return out.getvalue() + bytes(5000)


def _flushed_and_stored(tar: bytes) -> bytes:
    """Empty blocks everywhere, and stored ones: boundaries that share a plain offset."""
    out = b""
    z = zlib.compressobj(0, zlib.DEFLATED, 31)
    for at in range(0, len(tar), 300_000):
        out += z.compress(tar[at : at + 300_000]) + z.flush(zlib.Z_FULL_FLUSH)
        out += b"\0\0\0\xff\xff" * 3  # empty blocks
    return out + z.flush()


@pytest.mark.parametrize(
    "pack", [_one_member, _many_members, _named_member_and_padding, _flushed_and_stored]
)
def test_any_gzip_from_a_file_and_from_a_pipe(pack: object, tmp_path: Path) -> None:
    assert callable(pack)
    text = b" ".join(b"%d" % (i * i) for i in range(400_000))
    tar = _layer(tmp_path / "layer.tar", text)
    source = tmp_path / "layer.tar.gz"
    source.write_bytes(pack(tar.read_bytes()))
    image = _create("targz-ref", source, tmp_path, "--chunk-size", "0x40000")
    assert image.bootstrap.blobs[0].compressor is Compressor.GZIP
    chunks = image.chunk_map(0)
    assert all(chunks.unit(i).ulen <= 5 << 20 for i in range(chunks.nunits))
    with tarfile.open(tar) as members:
        for info in members:
            data = members.extractfile(info)
            assert data is not None
            assert image.read("/" + info.name) == data.read(), info.name
    piped = tmp_path / "piped.boot"
    with source.open("rb") as f:
        subprocess.run(
            [*NYDUS_IMAGE, "create", "-t", "targz-ref", "--chunk-size", "0x40000",
             "-B", str(piped), "-D", str(tmp_path), "-"],
            stdin=f, check=True, timeout=60, stdout=subprocess.DEVNULL,
        )  # fmt: skip
    assert piped.read_bytes() == (tmp_path / "image.boot").read_bytes()


def _sparse(tar: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as f:
        info = tarfile.TarInfo("hole")
        info.size = 4
        info.pax_headers = {
            "GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.size": "9000",
            "GNU.sparse.numblocks": "1", "GNU.sparse.map": "8000,4",
        }  # fmt: skip
        f.addfile(info, io.BytesIO(b"data"))
    return gzip.compress(out.getvalue())


_HOSTILE = {
    "cut short": lambda t: gzip.compress(t)[:-9],
    "cut in the header": lambda _: b"\x1f\x8b\x08",
    "wrong checksum": lambda t: gzip.compress(t)[:-8] + bytes(8),
    "other data behind": lambda t: gzip.compress(t) + b"and so on",
    "data behind padding": lambda t: gzip.compress(t) + bytes(700) + gzip.compress(t),
    "no deflate": lambda t: gzip.compress(t)[:10] + b"\xff" * 100,
    "no tar inside": lambda _: gzip.compress(os.urandom(5000)),
    "sparse": _sparse,
}


@pytest.mark.parametrize("name", _HOSTILE)
def test_hostile_gzip_is_refused_and_leaves_nothing(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tar = _layer(tmp_path / "layer.tar", b"text")
    source, out = tmp_path / "hostile", tmp_path / "out"
    source.write_bytes(_HOSTILE[name](tar.read_bytes()))
    out.mkdir()
    argv = ["create", "-t", "targz-ref", "-B", str(out / "boot"), "-D", str(out), str(source)]
    assert main(argv) == 1
    assert "nydus-image create: " in capsys.readouterr().err
    assert list(out.iterdir()) == []


def test_blocks_too_long_to_reach_a_chunk_are_refused_with_a_way_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tar = tmp_path / "zeros.tar"
    with tarfile.open(tar, "w") as f:
        info = tarfile.TarInfo("zeros")
        info.size = 40 << 20
        f.addfile(info, io.BytesIO(bytes(info.size)))
    z = zlib.compressobj(9, zlib.DEFLATED, 31, 9)  # blocks of 8 MB
    source = tmp_path / "zeros.tar.gz"
    source.write_bytes(z.compress(tar.read_bytes()) + z.flush())
    argv = ["create", "-t", "targz-ref", "-B", str(tmp_path / "boot"), "-D", str(tmp_path)]
    assert main([*argv, "--chunk-size", "0x1000000", str(source)]) == 1
    assert "choose a smaller --chunk-size" in capsys.readouterr().err
    image = _create("targz-ref", source, tmp_path)
    assert not any(image.read("/zeros"))


def test_a_tar_gz_cannot_be_mounted_as_it_is(
    layers: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["create", "-t", "tar-tarfs", "-B", str(tmp_path / "boot"), str(layers[0])]
    assert main(argv) == 1
    assert "choose --type targz-ref" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_tar_gz_that_is_referred_to_is_not_kept(
    layers: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of a file or a pipe: the same image, and no room for temporary files is needed."""
    made = []
    for name in ("file", "pipe"):
        (tmp_path / name).mkdir()
        source = layers[0]
        if name == "pipe":
            source = tmp_path / "fifo"
            os.mkfifo(source)
            feeder = subprocess.Popen(["cp", layers[0], source])
        monkeypatch.setattr(tempfile, "tempdir", "/nonexistent")
        argv = ["create", "-t", "targz-ref", "-B", str(tmp_path / name / "boot"), str(source)]
        assert main([*argv, "-D", str(tmp_path / name)]) == 0
        made.append({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()})
    assert feeder.wait() == 0
    assert made[0] == made[1]


def test_one_deflate_block_of_many_chunks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Inflating can start at its beginning only: no reader takes so large a context."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as out:
        member = tarfile.TarInfo("f")
        member.size = 40 << 20
        out.addfile(member, io.BytesIO(b"".join(i.to_bytes(8, "big") * 4096 for i in range(1280))))
    layer = tmp_path / "layer.tar.gz"
    layer.write_bytes(one_block(tar.getvalue()))
    argv = ["create", "-t", "targz-ref", "-B", str(tmp_path / "boot"), "-D", str(tmp_path)]
    assert main([*argv, str(layer)]) == 1
    assert "no place to start from" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [layer]


def one_block(data: bytes) -> bytes:
    """As gzip, in one deflate block of the fixed code: literals, and the longest matches where
    bytes 8 before are the same."""
    bits, n, out = 0, 0, bytearray(b"\x1f\x8b\x08" + bytes(7))

    def put(value: int, count: int) -> None:
        nonlocal bits, n
        bits |= value << n
        n += count
        while n >= 8:
            out.append(bits & 255)
            bits, n = bits >> 8, n - 8

    def code(value: int, count: int) -> None:  # its highest bit goes first
        put(int(f"{value:0{count}b}"[::-1], 2), count)

    put(0b011, 3)  # the last block, fixed code
    at = 0
    while at < len(data):
        if at >= 8 and data[at : at + 258] == data[at - 8 : at + 250] and at + 258 <= len(data):
            code(0b11000101, 8)  # length 258
            code(5, 5)  # distance 7 or 8
            put(1, 1)
            at += 258
        else:
            byte = data[at]
            code(*((0x30 + byte, 8) if byte < 144 else (0x190 + byte - 144, 9)))
            at += 1
    code(0, 7)
    put(0, -n % 8)
    return bytes(out) + zlib.crc32(data).to_bytes(4, "little") + len(data).to_bytes(4, "little")


@pytest.mark.parametrize("full", ["temporary files", "blob", "bootstrap"])
def test_full_disk_leaves_nothing(
    full: str, layers: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    small, large = tmp_path / "small", tmp_path / "large"
    small.mkdir()
    large.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", small], check=True)
    try:
        if full == "temporary files":
            monkeypatch.setattr(tempfile, "tempdir", str(small))
        boot = (small if full == "bootstrap" else large) / "boot"
        blobs = small if full == "blob" else large
        kind = "targz-rafs" if full == "temporary files" else "targz-ref"
        argv = ["create", "-t", kind, "-B", str(boot), "-D", str(blobs), str(layers[0])]
        assert main(argv) == 1
        error = capsys.readouterr().err
        assert "No space left on device" in error
        assert full != "temporary files" or "TMPDIR" in error
        assert list(small.iterdir()) == []
        assert list(large.iterdir()) == []
    finally:
        subprocess.run(["umount", small], check=True)
