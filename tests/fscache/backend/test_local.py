"""localfs and localdisk."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import uuid
import zlib
from pathlib import Path

import pytest
from backend_kit import Make, soon

from nydus_fscache.backend.gpt import BASIC_DATA
from nydus_fscache.errors import BackendError, UsageError

MIB = 1 << 20
LINUX_DATA = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")


def test_localfs_looks_in_all_directories(
    tmp_path: Path, blobs: Path, make: Make, data: bytes, blob_id: str
) -> None:
    empty, odd = tmp_path / "empty", tmp_path / "odd"
    empty.mkdir()
    (empty / blob_id).touch()  # what an interrupted download leaves
    (odd / blob_id).mkdir(parents=True)
    backend = make("localfs", dir=str(empty), alt_dirs=[str(odd), str(blobs), "/nowhere"])
    assert backend.size(blob_id, deadline=soon()) == len(data)
    assert backend.read(blob_id, 3, 5000, deadline=soon()) == data[3:5003]
    with pytest.raises(BackendError, match="are needed"):
        backend.read(blob_id, len(data) - 1, 2, deadline=soon())
    with pytest.raises(BackendError, match="is not in") as caught:
        backend.size("0" * 64, deadline=soon())
    assert caught.value.status == 404


def test_localfs_one_file(blobs: Path, make: Make, data: bytes, blob_id: str) -> None:
    backend = make("localfs", blob_file=str(blobs / blob_id))
    assert backend.read("any-name", 0, 9, deadline=soon()) == data[:9]


@pytest.mark.parametrize("bad", ["..", "../secret", "/etc/passwd", "a\0b", "", "sub/../x"])
def test_localfs_refuses_to_leave(tmp_path: Path, blobs: Path, make: Make, bad: str) -> None:
    (tmp_path / "secret").write_text("s")
    backend = make("localfs", dir=str(blobs))
    with pytest.raises(BackendError, match="is not a file name"):
        backend.size(bad, deadline=soon())


def test_localfs_does_not_wait_for_a_fifo(blobs: Path, make: Make) -> None:
    os.mkfifo(blobs / "f")
    with pytest.raises(BackendError, match="is not in"):
        make("localfs", dir=str(blobs)).size("f", deadline=soon())


def entry(kind: uuid.UUID, guid: uuid.UUID, name: str, first: int, last: int) -> bytes:
    text = name.encode("utf-16-le").ljust(72, b"\0")
    return struct.pack("<16s16sQQQ72s", kind.bytes_le, guid.bytes_le, first, last, 0, text)


def write_gpt(path: Path, entries: list[bytes], size: int) -> None:
    """Both copies of the table, as UEFI 2.10, chapter 5.3, lays them out."""
    table = b"".join(entries).ljust(128 * 128, b"\0")
    sectors = size // 512

    def header(own: int, other: int, table_lba: int) -> bytes:
        def pack(crc: int) -> bytes:
            return struct.pack(
                "<8sIIIIQQQQ16sQIII",
                b"EFI PART", 0x10000, 92, crc, 0, own, other, 34, sectors - 34,
                bytes(range(16)), table_lba, 128, 128, zlib.crc32(table),
            )  # fmt: skip

        return pack(zlib.crc32(pack(0))).ljust(512, b"\0")

    with path.open("r+b" if path.exists() else "wb") as disk:
        disk.truncate(size)
        disk.seek(512)
        disk.write(header(1, sectors - 1, 2) + table)
        disk.seek((sectors - 33) * 512)
        disk.write(table + header(sectors - 1, 1, sectors - 33))


@pytest.fixture
def disk(tmp_path: Path, data: bytes, blob_id: str) -> Path:
    path = tmp_path / "disk.img"
    guid = uuid.UUID(hex=blob_id[32:])
    entries = [
        entry(BASIC_DATA, uuid.uuid4(), "ab" * 16, 2048, 4095),
        entry(LINUX_DATA, guid, blob_id[:32], 4096, 6143),
    ]
    write_gpt(path, entries, 4 * MIB)
    with path.open("r+b") as file:
        for first in (2048, 4096):
            file.seek(first * 512)
            file.write(data)
    return path


def test_localdisk(disk: Path, make: Make, data: bytes, blob_id: str) -> None:
    backend = make("localdisk", device_path=str(disk))
    for name in ("ab" * 32, blob_id):
        assert backend.size(name, deadline=soon()) == MIB
        assert backend.read(name, 77, 9999, deadline=soon()) == data[77 : 77 + 9999]
    with pytest.raises(BackendError, match="no partition"):
        backend.size(blob_id[:32] + "0" * 32, deadline=soon())
    with pytest.raises(BackendError, match="in its partition"):
        backend.read(blob_id, MIB - 1, 2, deadline=soon())


def test_localdisk_uses_the_second_table(disk: Path, make: Make, blob_id: str) -> None:
    with disk.open("r+b") as file:
        file.seek(600)
        file.write(b"\xff")
    assert make("localdisk", device_path=str(disk)).size(blob_id, deadline=soon()) == MIB


def test_localdisk_as_sfdisk_makes_it(tmp_path: Path, make: Make) -> None:
    sfdisk = shutil.which("sfdisk", path="/usr/sbin:/sbin:/usr/bin")
    if sfdisk is None:
        pytest.skip("sfdisk is not installed: apt-get install fdisk")
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(8 * MIB)
    script = f"label: gpt\nstart=2048, size=2048, type={BASIC_DATA}, name={'cd' * 16}\n"
    subprocess.run([sfdisk, "-q", str(path)], input=script, text=True, check=True)
    assert make("localdisk", device_path=str(path)).size("cd" * 32, deadline=soon()) == MIB


def test_localdisk_bad_disks(tmp_path: Path, make: Make) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(MIB))
    with pytest.raises(BackendError, match="no GUID partition table"):
        make("localdisk", device_path=str(path))
    with pytest.raises(BackendError, match="cannot open"):
        make("localdisk", device_path=str(tmp_path / "none"))
    with pytest.raises(UsageError):
        make("localdisk", device_path=str(path), disable_gpt=True)
    for entries, message in [
        ([entry(BASIC_DATA, uuid.uuid4(), "a", 2048, 99999)], "sectors 2048 to 99999"),
        ([entry(BASIC_DATA, uuid.uuid4(), "", 2048, 2049)], "missing"),
        ([entry(BASIC_DATA, uuid.uuid4(), "a", n, n + 1) for n in (50, 60)], "used twice"),
    ]:
        write_gpt(path, entries, 4 * MIB)
        with pytest.raises(BackendError, match=message):
            make("localdisk", device_path=str(path))


def test_localdisk_after_close_reads_nothing(
    tmp_path: Path, disk: Path, make: Make, blob_id: str
) -> None:
    """The number of its descriptor may be another file's by then."""
    backend = make("localdisk", device_path=str(disk))
    stream = backend.open_range(blob_id, 0, 10, deadline=soon(), prefetch=False)
    backend.close()
    backend.close()
    other = tmp_path / "other"
    other.write_bytes(b"secret" * 100_000)
    fds = [os.open(other, os.O_RDONLY) for _ in range(8)]
    try:
        with pytest.raises(BackendError, match="closed"):
            backend.read(blob_id, 0, 10, deadline=soon())
        assert stream.readinto(memoryview(bytearray(10))) == 10  # one that was open reads on
    finally:
        stream.close()
        for fd in fds:
            os.close(fd)
