"""One virtual machine: Debian's kernel with cachefiles on-demand, over this machine's files.

Guarantees: the host's root is seen read-only (virtiofs), so the checkout and its
interpreter are where they are here; what the guest writes is on a fresh ext4
disk and gone afterwards; ``run`` ends in time, whatever the guest does, and
leaves no process.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
VIRTIOFSD = Path("/usr/lib/qemu/virtiofsd")
PROGRAMS = ("qemu-system-x86_64", "busybox", "cpio", "mkfs.ext4")
BUILD_S = 900
MEMORY_MIB = 1024
MARK = "@check "  # what a line of the console begins with that is a check's outcome

# Paths below these are hidden in the guest by file systems of its own.
_HIDDEN = ("/tmp", "/run", "/mnt")

_INIT = """\
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
echo 1 > /proc/sys/kernel/printk
(sleep {limit}; echo "guest: out of time"; echo w > /proc/sysrq-trigger; dmesg | tail -n 150
 poweroff -f) &
for m in $(cat /mods/load); do insmod /mods/$m.ko || echo "guest: no module $m"; done
mount -t virtiofs -o ro host /host || poweroff -f
mount --bind /host /new
for d in {hidden}; do mount -t tmpfs t /new$d; done
mount -t proc p /new/proc; mount -t sysfs s /new/sys; mount --move /dev /new/dev
mkdir -p /new/mnt/cache /new/dev/shm
mount -t tmpfs t /new/dev/shm
for d in {bound}; do mkdir -p /new$d; mount --bind /host$d /new$d; done
mount -t ext4 /new/dev/vda /new/mnt/cache
ifconfig lo 127.0.0.1 up
chroot /new {command}
dmesg | tail -n 60
timeout 10 sync
poweroff -f
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one check in the guest came to."""

    name: str
    ok: bool
    detail: str


def missing() -> str:
    """Why no machine can run here; empty when one can."""
    absent = [p for p in PROGRAMS if shutil.which(p) is None]
    if not VIRTIOFSD.exists():
        absent.append(str(VIRTIOFSD))
    return f"not installed: {', '.join(absent)} (scripts/setup --test)" if absent else ""


def build() -> tuple[Path | None, str]:
    """The directory of the built kernel, or None and why there is none; raises if it fails."""
    done = subprocess.run(
        [str(HERE / "build")], capture_output=True, text=True, timeout=BUILD_S, check=False
    )
    if done.returncode == 77:
        return None, done.stderr.strip().splitlines()[-1]
    if done.returncode != 0:
        raise AssertionError(f"vm-tests/build: {done.returncode}\n{done.stderr}")
    return Path(done.stdout.strip().splitlines()[-1]), ""


def _initrd(kernel: Path, work: Path, command: list[str], seen: list[Path], limit_s: int) -> Path:
    root = work / "initrd"
    for name in ("bin", "dev", "proc", "sys", "host", "new"):
        (root / name).mkdir(parents=True)
    shutil.copytree(kernel / "mods", root / "mods")
    shutil.copy(kernel / "load", root / "mods" / "load")
    shutil.copy(shutil.which("busybox") or "", root / "bin" / "busybox")
    bound = [p for p in map(str, seen) if p.startswith(tuple(f"{h}/" for h in _HIDDEN))]
    init = root / "init"
    init.write_text(
        _INIT.format(
            limit=limit_s,
            hidden=" ".join(_HIDDEN),
            bound=" ".join(map(shlex.quote, bound)),
            command=shlex.join(command),
        )
    )
    init.chmod(0o755)
    out = work / "initrd.cpio"
    with out.open("wb") as f:
        names = "\n".join(str(p.relative_to(root)) for p in sorted(root.rglob("*"))).encode()
        subprocess.run(
            ["cpio", "-o", "-H", "newc", "--quiet"], input=names, cwd=root, stdout=f, check=True
        )
    return out


@contextlib.contextmanager
def _virtiofsd(work: Path) -> Iterator[Path]:
    """Serves one machine; it ends with it, and at the latest here."""
    path = work / "virtiofs.sock"
    process = subprocess.Popen(
        [str(VIRTIOFSD), f"--socket-path={path}", "-o", "source=/", "-o", "sandbox=chroot",
         "-o", "cache=always", "-o", "no_xattr", "--thread-pool-size=2"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 20
        while not path.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError("virtiofsd does not start")
            time.sleep(0.02)
        yield path
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        process.kill()
        process.wait()


def _qemu(kernel: Path, initrd: Path, socket: Path, disk: Path) -> list[str]:
    return [
        "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2",
        "-m", str(MEMORY_MIB), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-kernel", str(kernel / "vmlinuz"), "-initrd", str(initrd),
        # the kernel tries the timer for a moment, and panics where a busy host is slower
        "-append", "console=ttyS0 panic=-1 quiet loglevel=4 no_timer_check", "-serial", "stdio",
        "-object", f"memory-backend-memfd,id=mem,size={MEMORY_MIB}M,share=on",
        "-numa", "node,memdev=mem",
        "-chardev", f"socket,id=c0,path={socket}",
        "-device", "vhost-user-fs-pci,chardev=c0,tag=host",
        "-drive", f"file={disk},if=virtio,format=raw,cache=unsafe",
    ]  # fmt: skip


def run(kernel: Path, work: Path, words: list[str], seen: list[Path], limit_s: int) -> str:
    """Boot, run a script (``words``: its path and arguments) by this interpreter as root, power
    off; the console's text.

    ``seen``: directories that the script needs, besides the system's.
    """
    # the guest cannot write it beside the sources, and would compile them at each start
    ours = [str(HERE.parent / name) for name in ("nydus_fscache", "rafs_v6", "tests/kit")]
    subprocess.run([sys.executable, "-m", "compileall", "-q", *ours], check=False)
    command = [sys.executable, "-B", *words]
    initrd = _initrd(kernel, work, command, seen, limit_s)
    disk = work / "cache.img"
    with disk.open("wb") as f:
        f.truncate(1 << 30)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(disk)], check=True)
    console = work / "console"
    with _virtiofsd(work) as socket, console.open("wb") as out:
        process = subprocess.Popen(
            _qemu(kernel, initrd, socket, disk), stdin=subprocess.DEVNULL, stdout=out,
            stderr=subprocess.STDOUT,
        )
        try:
            process.wait(limit_s + 60)
        except subprocess.TimeoutExpired:
            out.write(b"\nhost: the machine does not end\n")
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.wait()
    disk.unlink()
    return console.read_text(errors="replace")


def outcomes(console: str) -> dict[str, Outcome]:
    """The checks that reported, by name."""
    found = {}
    for line in console.splitlines():
        _, mark, text = line.partition(MARK)
        if mark:
            with contextlib.suppress(ValueError):
                document: dict[str, Any] = json.loads(text)
                found[document["name"]] = Outcome(**document)
    return found
