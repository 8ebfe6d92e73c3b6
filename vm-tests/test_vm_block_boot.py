"""A microVM's root is an exported image: the kernel's EROFS on a disk, no daemon and no network.

As Kata attaches it (image_raw_block) and as a monitor without Kata does.  The disk carries its
dm-verity tree behind the file system; `tests/rafs/tools/test_export.py` has that verified, and
mounts the disk as it is.  This machine's kernel is 6.1: before 6.4, EROFS does not look for blobs
on the disk itself, so the monitor shows it each blob as a slice of the same file.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import string
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from trees import GOLDEN

BIN = Path(sys.executable).parent
LIMIT_S = 600
SUPER_OFF, SLOT_SIZE = 1024, 128  # erofs_fs.h

_INIT = """\
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc; mount -t devtmpfs dev /dev
echo 1 > /proc/sys/kernel/printk
for m in $(cat /mods/load); do insmod /mods/$m.ko; done
while [ ! -b {last} ]; do sleep 0.1; done
mount -t erofs -o ro{devices} /dev/vda /new || { echo "guest: no root"; poweroff -f; }
mount --move /dev /new/dev
exec switch_root -c /dev/console /new /usr/bin/python3.11 -S -c "$(cat /program)"
"""
# The first process of the machine; the image's python has few modules.
_PROGRAM = """\
import os, stat
from _sha256 import sha256
count = total = 0
for parent, folders, files in os.walk(b'/'):
    if parent == b'/':
        folders[:] = [f for f in folders if f not in (b'dev', b'proc', b'sys')]
    for name in files:
        path = os.path.join(parent, name)
        if stat.S_ISREG(os.lstat(path).st_mode):
            count += 1
            with open(path, 'rb') as f:
                line = path + sha256(f.read()).hexdigest().encode()
            total ^= int.from_bytes(sha256(line).digest(), 'big')
print('@root', os.getpid(), os.statvfs('/').f_flag & 1, count, total, flush=True)
"""


def expected(image: Path) -> tuple[int, int]:
    """Files of the tree, and one number for their names and contents."""
    count = total = 0
    for line in (image / "expected.jsonl").read_text().splitlines():
        entry = json.loads(line)
        path = "/" + entry["path"].strip("/")
        if entry["type"] == "reg" and path.split("/")[1] not in ("dev", "proc", "sys"):
            count += 1
            text = path.encode("utf-8", "surrogateescape") + entry["sha256"].encode()
            total ^= int.from_bytes(hashlib.sha256(text).digest())
    return count, total


def slices(disk: Path) -> list[tuple[int, int]]:
    """(offset, bytes) of each blob on the disk, as its device table says."""
    with disk.open("rb") as file:
        head = file.read(1 << 20)
    count, slot = struct.unpack_from("<HH", head, SUPER_OFF + 86)
    block_bits = head[SUPER_OFF + 12]
    found = []
    for number in range(count):
        blocks, start = struct.unpack_from("<II", head, (slot + number) * SLOT_SIZE + 64)
        found.append((start << block_bits, blocks << block_bits))
    return found


def drive(disk: Path, off: int, length: int) -> list[str]:
    where = f",offset={off},size={length}" if length else ""
    return [
        "-drive",
        f"if=virtio,readonly=on,driver=raw{where},file.driver=file,file.filename={disk},"
        "file.locking=off",
    ]


def boot(kernel: Path, work: Path, disk: Path) -> str:
    """The console of a machine that has this disk, and nothing else."""
    root = work / "initrd"
    for name in ("bin", "dev", "proc", "new"):
        (root / name).mkdir(parents=True)
    shutil.copytree(kernel / "mods", root / "mods")
    shutil.copy(kernel / "load", root / "mods" / "load")
    shutil.copy(shutil.which("busybox") or "", root / "bin" / "busybox")
    parts = slices(disk)
    names = [f",device=/dev/vd{letter}" for letter in string.ascii_lowercase[1 : len(parts) + 1]]
    last = f"/dev/vd{string.ascii_lowercase[len(parts)]}"
    (root / "init").write_text(_INIT.replace("{devices}", "".join(names)).replace("{last}", last))
    (root / "init").chmod(0o755)
    (root / "program").write_text(_PROGRAM)
    initrd, console = work / "initrd.cpio", work / "console"
    files = "\n".join(str(p.relative_to(root)) for p in sorted(root.rglob("*"))).encode()
    with initrd.open("wb") as f:
        words = ["cpio", "-o", "-H", "newc", "--quiet"]
        subprocess.run(words, input=files, cwd=root, stdout=f, check=True)
    with console.open("wb") as out:
        qemu = subprocess.Popen(
            [
                "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2",
                "-m", "512", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
                "-kernel", str(kernel / "vmlinuz"), "-initrd", str(initrd),
                "-append", "console=ttyS0 panic=-1 quiet loglevel=4 no_timer_check",
                "-serial", "stdio",
                *drive(disk, 0, 0), *(word for part in parts for word in drive(disk, *part)),
            ],
            stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            qemu.wait(LIMIT_S)
        finally:
            if qemu.poll() is None:
                qemu.send_signal(signal.SIGKILL)
                qemu.wait()
    return console.read_text(errors="replace")


@pytest.mark.long
@pytest.mark.parametrize("name", ["layers-zstd", "layers-zran"])
def test_an_exported_image_is_the_root_of_a_machine(
    kernel: Path, tmp_path: Path, name: str
) -> None:
    image, disk = GOLDEN / "images" / name, tmp_path / "image.disk"
    subprocess.run(
        [
            BIN / "nydus-image", "export", "--block", "--verity", "--bootstrap",
            image / "image.boot", "--blob-dir", image / "blobs", "--output", disk,
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    console = boot(kernel, tmp_path, disk)
    found = [line.split("@root", 1)[1].split() for line in console.splitlines() if "@root" in line]
    assert found, console[-3000:]
    count, total = expected(image)
    assert count > 100
    assert [int(word) for word in found[0]] == [1, 1, count, total]
