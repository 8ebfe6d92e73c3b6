"""A machine that boots Debian by systemd from a disk of its own, with our package installed.

The disk is a clean Debian (tests/kit/debian.py) with the package, lines of fstab, an image and its
blobs, and a unit that runs guest/node.py at the end of each boot and then reboots or powers off.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import debian
import machine
from trees import GOLDEN

HERE = Path(__file__).resolve().parent
IMAGE = GOLDEN / "images" / "layers-zstd"
LIMIT_S = 900  # of a boot; on an idle machine it takes a fraction
DISK = 3 << 29

_OPTIONS = (
    "_netdev,x-systemd.requires=nydus-fscache.service,"
    "blob_dir=/srv/blobs,transport=cachefiles,prefetch=none"
)
_FSTAB = f"""\
/srv/image.boot /mnt/app erofs.nydus {_OPTIONS} 0 0
/srv/none.boot /mnt/none erofs.nydus {_OPTIONS},nofail 0 0
"""
_DRIVER = """\
[Service]
Environment=NYDUS_FSCACHE_GRAPHDRIVER_BACKEND=/srv/backend.json
"""
_CHECKS = """\
[Unit]
After=multi-user.target remote-fs.target

[Service]
Type=oneshot
ExecStart=/usr/bin/python3 /opt/node.py
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0

[Install]
WantedBy=graphical.target
"""
_INIT = """\
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
for m in $(cat /mods/load); do insmod /mods/$m.ko || echo "guest: no module $m"; done
mount -t ext4 /dev/vda /new || poweroff -f
mount --move /dev /new/dev; umount /proc; umount /sys
exec switch_root /new /sbin/init
"""


def make_disk(work: Path) -> Path:
    with debian.Tree(work / "tree") as tree:
        tree.install(debian.package())
        root = tree.path
        (root / "etc/fstab").write_text(_FSTAB)
        for name in ("mnt/app", "mnt/none", "var/log/journal"):
            (root / name).mkdir(exist_ok=True)
        shutil.copy(IMAGE / "image.boot", root / "srv/image.boot")
        shutil.copy(IMAGE / "expected.jsonl", root / "srv/expected.jsonl")
        shutil.copytree(IMAGE / "blobs", root / "srv/blobs")
        shutil.copy(HERE / "guest/node.py", root / "opt/node.py")
        units = root / "etc/systemd/system"
        (units / "checks.service").write_text(_CHECKS)
        (units / "nydus-fscache-graphdriver.service.d").mkdir()
        (units / "nydus-fscache-graphdriver.service.d/blobs.conf").write_text(_DRIVER)
        backend = {"type": "localfs", "localfs": {"dir": "/srv/blobs"}}
        (root / "srv/backend.json").write_text(json.dumps(backend))
        tree.run("systemctl", "enable", "checks.service")
        tree.run("systemctl", "set-default", "graphical.target")
        tree.run("systemctl", "mask", "getty.target", "apt-daily.timer", "dpkg-db-backup.timer")
        for point in ("dev", "proc", "sys", "run"):
            subprocess.run(["umount", "-l", root / point], check=True)
        disk = work / "disk.img"
        with disk.open("wb") as file:
            file.truncate(DISK)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-d", root, disk], check=True)
    return disk


def make_initrd(kernel: Path, work: Path) -> Path:
    root = work / "initrd"
    for name in ("bin", "dev", "proc", "sys", "new"):
        (root / name).mkdir(parents=True)
    shutil.copytree(kernel / "mods", root / "mods")
    shutil.copy(kernel / "load", root / "mods" / "load")
    shutil.copy(shutil.which("busybox") or "", root / "bin" / "busybox")
    (root / "init").write_text(_INIT)
    (root / "init").chmod(0o755)
    out = work / "initrd.cpio"
    names = "\n".join(str(p.relative_to(root)) for p in sorted(root.rglob("*"))).encode()
    with out.open("wb") as file:
        subprocess.run(
            ["cpio", "-o", "-H", "newc", "--quiet"], input=names, cwd=root, stdout=file, check=True
        )
    return out


def boot(kernel: Path, initrd: Path, disk: Path, console: Path) -> str:
    """Until the machine ends, by a reboot too; the console's text."""
    command = [
        "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2",
        "-m", str(machine.MEMORY_MIB), "-nodefaults", "-no-user-config", "-display", "none",
        "-no-reboot", "-kernel", kernel / "vmlinuz", "-initrd", initrd,
        # on a busy host the emulated timer fails a check of the kernel's, which panics then
        "-append", "console=ttyS0 panic=-1 quiet no_timer_check systemd.show_status=false",
        "-serial", "stdio", "-drive", f"file={disk},if=virtio,format=raw,cache=unsafe",
    ]  # fmt: skip
    with console.open("wb") as out:
        process = subprocess.Popen(
            list(map(os.fspath, command)), stdin=subprocess.DEVNULL, stdout=out,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            out.write(b"\nhost: the machine does not end\n")
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    return console.read_text(errors="replace")


def run(kernel: Path, work: Path) -> str:
    """Two boots of one disk; both consoles."""
    disk, initrd = make_disk(work), make_initrd(kernel, work)
    try:
        texts = [boot(kernel, initrd, disk, work / f"console.{n}") for n in (1, 2)]
    finally:
        disk.unlink()
    return "\n".join(texts)
