"""Our Debian package, and a clean tree of Debian to install it in.

Both are made once for a state of the sources and kept below ``build``; ``Tree`` is a copy of one's
own that is gone afterwards, with all that ran in it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest
from rig import mounts_below

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "build" / "debian"
SUITE = "bookworm"
MIRROR = "http://deb.debian.org/debian"
# what the package depends on, and systemd for machines that boot from it
INSIDE = (
    "python3", "libzstd1", "liblz4-1", "liburing2", "libssl3", "zlib1g", "libstdc++6",
    "systemd-sysv", "dbus", "kmod", "ca-certificates",
)  # fmt: skip
PATIENCE_S = 600
_STALE_S = 3600.0
_DEVICES = {
    "null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9),
    "tty": (5, 0), "fuse": (10, 229),
}  # fmt: skip


def base() -> Path:
    """A tar of a minimal Debian, without our package; skips where none can be had."""
    file = KEPT / f"{SUITE}.tar"
    if file.exists():
        return file
    if not shutil.which("debootstrap"):
        pytest.skip("NO debootstrap: the package is not tested (scripts/setup --test)")
    KEPT.mkdir(parents=True, exist_ok=True)
    work = KEPT / f"work.{os.getpid()}"
    try:
        done = subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={','.join(INSIDE)}", SUITE, work,
             MIRROR],
            capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        )  # fmt: skip
        if done.returncode:
            pytest.skip(f"NO DEBIAN TREE, the package is not tested: {done.stdout[-300:]}")
        shutil.rmtree(work / "var/cache/apt/archives")
        (work / "var/cache/apt/archives/partial").mkdir(parents=True)
        subprocess.run(["tar", "-C", work, "-cf", f"{work}.tar", "."], check=True)
        os.replace(f"{work}.tar", file)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return file


def package() -> Path:
    """Built by ``scripts/package``, of the programs as they are now (documents may be older)."""
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "csrc",
         "nydus_fscache", "packaging", "rafs_v6", "scripts/package", "scripts/manual",
         "pyproject.toml"],
        cwd=ROOT, check=True, stdout=subprocess.PIPE,
    ).stdout.split(b"\0")  # fmt: skip
    digest = hashlib.sha256()
    for name in sorted(filter(None, names)):
        file = ROOT / os.fsdecode(name)
        if file.is_file():
            digest.update(name + b"\0" + file.read_bytes())
    out = KEPT / digest.hexdigest()[:16]
    KEPT.mkdir(parents=True, exist_ok=True)
    with (KEPT / "lock").open("w") as lock:  # other tests may want it at the same time
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = list(out.glob("*.deb"))
        if found:
            return found[0]
        for old in KEPT.glob("?" * 16):
            if time.time() - old.stat().st_mtime > _STALE_S:
                shutil.rmtree(old)
        work = KEPT / "new"
        shutil.rmtree(work, ignore_errors=True)
        command = [ROOT / "scripts" / "package", "--out", work]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        work.rename(out)
        return out / Path(done.stdout.strip()).name


def renewed(deb: Path, version: str, work: Path) -> Path:
    """The same package as another version."""
    tree = work / version
    subprocess.run(["dpkg-deb", "-R", deb, tree], check=True)
    control = tree / "DEBIAN" / "control"
    lines = control.read_text().splitlines()
    old = next(line.split()[1] for line in lines if line.startswith("Version:"))
    control.write_text(control.read_text().replace(old, version))
    build_id = tree / "usr/lib/nydus-fscache/dist/build-id"
    build_id.write_text(build_id.read_text().replace(old, version))
    out = work / f"{version}.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Znone", "-b", tree, out], check=True)
    shutil.rmtree(tree)
    return out


class Tree:
    """A Debian of its own below ``path``; ``run`` runs a program in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        subprocess.run(["tar", "-C", path, "-xf", base()], check=True)
        # nothing of it is to outlive a power cut
        (path / "etc/dpkg/dpkg.cfg.d/tests").write_text("force-unsafe-io\n")

    def __enter__(self) -> Tree:
        for kind, where in (("proc", "proc"), ("sysfs", "sys"), ("tmpfs", "run")):
            subprocess.run(["mount", "-t", kind, kind, self.path / where], check=True)
        # devices of its own: whoever deletes this tree must not be able to delete the machine's
        devices = ["mount", "-t", "tmpfs", "-o", "mode=755", "dev", self.path / "dev"]
        subprocess.run(devices, check=True)
        for name, (major, minor) in _DEVICES.items():
            os.mknod(self.path / "dev" / name, 0o666 | stat.S_IFCHR, os.makedev(major, minor))
        return self

    def __exit__(self, *_: object) -> None:
        deadline = time.monotonic() + 20
        while pids := self.processes():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            assert time.monotonic() < deadline, pids
            time.sleep(0.02)
        for point in reversed(mounts_below(self.path)):
            subprocess.run(["umount", "-l", point], check=False, capture_output=True)
        assert mounts_below(self.path) == []
        shutil.rmtree(self.path)

    def run(self, *words: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": "/usr/local/bin:/usr/sbin:/usr/bin", "HOME": "/root", "LC_ALL": "C.UTF-8",
            "DEBIAN_FRONTEND": "noninteractive",
        }  # fmt: skip
        done = subprocess.run(
            ["chroot", self.path, *words], capture_output=True, text=True, env=environment,
            timeout=PATIENCE_S, check=False,
        )  # fmt: skip
        if check:
            assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def install(self, deb: Path) -> subprocess.CompletedProcess[str]:
        shutil.copy(deb, self.path / "tmp" / deb.name)
        try:
            return self.run("dpkg", "-i", f"/tmp/{deb.name}")
        finally:
            (self.path / "tmp" / deb.name).unlink()

    def processes(self) -> list[int]:
        """Those that run in it."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and (entry / "root").readlink() == self.path:
                    found.append(int(entry.name))
        return found

    def files(self) -> set[str]:
        """What is in it, but for what dpkg and others note for themselves."""
        passed = ("var/lib/dpkg", "var/log", "var/cache", "proc", "sys", "dev", "run", "tmp")
        found = set()
        for directory, names, files in os.walk(self.path):
            inner = os.path.relpath(directory, self.path)
            names[:] = [n for n in names if os.path.normpath(f"{inner}/{n}") not in passed]
            found |= {os.path.normpath(f"{inner}/{n}") for n in [*names, *files]}
        return found
