"""A small model of the daemon: what must be mounted, and what each command must answer.

``World`` is one root on a small disk of its own, four mountpoints and some images; it holds what
the kernel must show beside what it does show.  The commands go through the client that the
command line uses.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nydus_fscache.api.client import Client
from nydus_fscache.errors import FscacheError, NoDaemon
from nydus_fscache.kernel import mountinfo

POINTS = ("a", "b", "c", "d")
OK, USAGE, BAD_IMAGE, BACKEND, MOUNTPOINT, CACHE_DIR, DAEMON = 0, 2, 3, 4, 6, 8, 9
TMPFS = "tmpfs"
DISK_MIB = 48
PATIENCE_S = 30.0
INNER = "sub"  # a directory of every image


def run(*words: str | Path, check: bool = True) -> int:
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, (words, done.stderr)
    return done.returncode


def until(true: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while not (value := true()):
        assert time.monotonic() < deadline, what
        time.sleep(0.01)
    return value


@dataclass(frozen=True)
class ImageFiles:
    """``code``: what a mount of it ends with where nothing is in the way."""

    name: str
    boot: Path
    blobs: Path
    digests: dict[str, str]  # of regular files, by path inside
    code: int = OK


def make_images(base: Path) -> list[ImageFiles]:
    """Two good ones that share most of their data, one that is cut, one without its blob."""
    made = []
    for number in range(2):
        tree = base / f"tree{number}"
        (tree / INNER).mkdir(parents=True)
        for n in range(8):
            seed = f"{n}" if n < 6 else f"{n} of {number}"
            part = b"".join(hashlib.sha256(f"{seed} {i}".encode()).digest() for i in range(1 << 10))
            (tree / f"f{n}").write_bytes(part * (1 + n % 3))
        (tree / INNER / "g").write_bytes(b"g" * 5000)
        boot, blobs = base / f"image{number}.boot", base / f"blobs{number}"
        blobs.mkdir()
        create = "from nydus_fscache.cli.nydus_image import main; import sys; sys.exit(main())"
        words = ("create", "-B", boot, "-D", blobs, "--chunk-size", "0x4000", tree)
        run(sys.executable, "-c", create, *words)
        digests = {
            str(p.relative_to(tree)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in tree.rglob("*")
            if p.is_file()
        }
        made.append(ImageFiles(f"good{number}", boot, blobs, digests))
    cut = base / "cut.boot"
    cut.write_bytes(made[0].boot.read_bytes()[:6000])
    (base / "nothing").mkdir()
    lost = base / "lost.boot"  # metadata are cached by image and backend
    shutil.copy(made[1].boot, lost)
    made.append(ImageFiles("cut", cut, made[0].blobs, {}, BAD_IMAGE))
    made.append(ImageFiles("lost", lost, base / "nothing", {}, BACKEND))
    return made


@dataclass
class Open:
    """A file that a program has open; ``point``: None once its mount was lazily unmounted."""

    fd: int
    point: str | None
    image: ImageFiles
    name: str


@dataclass
class World:
    images: list[ImageFiles]
    empty_disk: Path  # an ext4, to be copied
    stacks: dict[str, list[ImageFiles | str]] = field(default_factory=dict)  # the topmost last
    inner: set[str] = field(default_factory=set)
    files: list[Open] = field(default_factory=list)
    running: bool = False
    full: bool = False
    said: str = ""  # by commands that failed, since the last check

    def __post_init__(self) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="nydus-model-"))
        run("mount", "--bind", self.base, self.base)
        run("mount", "--make-private", self.base)
        disk = self.base / "disk.img"
        shutil.copyfile(self.empty_disk, disk)
        (self.base / "disk").mkdir()
        run("mount", "-o", "loop", disk, self.base / "disk")
        self.root = self.base / "disk" / "root"
        self.client = Client(self.root)
        for point in POINTS:
            (self.base / point).mkdir()
            self.stacks[point] = []

    # -- commands ------------------------------------------------------------------------------

    def code(self, call: Callable[[], Any]) -> int:
        try:
            call()
        except FscacheError as e:
            self.said = f"{self.said}{type(e).__name__}: {e}; "
            return e.exit_code
        return OK

    def mount_call(self, point: str, image: ImageFiles) -> int:
        request = {
            "bootstrap": str(image.boot),
            "backend": {"type": "localfs", "localfs": {"dir": str(image.blobs)}},
            "mountpoint": str(self.base / point),
            "prefetch": "none",
            "source": image.name,
        }
        return self.code(lambda: self.client.call_first("POST", "/v1/mounts", request))

    def umount_call(self, point: str) -> int:
        at = str(self.base / point)
        return self.code(lambda: self.client.call("DELETE", "/v1/mounts", mountpoint=at))

    def stop_call(self) -> int:
        def stop() -> None:
            self.client.call("POST", "/v1/stop")
            self.client.wait_for_end()

        return self.code(stop)

    def prefetch_call(self, point: str) -> int:
        body = {"mountpoint": str(self.base / point)}
        return self.code(lambda: self.client.call("POST", "/v1/prefetches", body))

    def gc_call(self) -> int:
        return self.code(lambda: self.client.call("POST", "/v1/gc", {"to": 0}))

    def login_call(self) -> int:
        body = {"host": "registry.invalid", "auth": "YTpi"}
        return self.code(lambda: self.client.call("POST", "/v1/credentials", body))

    def upgrade_call(self) -> int:
        def upgrade() -> None:
            body = {"python": sys.executable}
            answer = self.client.call("POST", "/v1/upgrade", body)
            self.client.wait_for_successor(answer["pid"])

        return self.code(upgrade)

    def status(self) -> dict[str, Any] | None:
        try:
            document: dict[str, Any] = self.client.call("GET", "/v1/status")
        except NoDaemon:
            return None
        return document

    # -- kills ---------------------------------------------------------------------------------

    def kill_service(self) -> None:
        pid = self._pids()["pid"]
        os.kill(pid, signal.SIGKILL)
        until(lambda: (s := self.status()) and s["pid"] != pid, "no successor")

    def kill_keeper(self) -> None:
        pid = self._pids()["keeper_pid"]
        os.kill(pid, signal.SIGKILL)
        until(lambda: (s := self.status()) and s["keeper_pid"] != pid, "no new keeper")

    def kill_both(self) -> None:
        pids = self._pids()
        both = pids["keeper_pid"], pids["pid"]
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in both:
                os.kill(pid, number)
        until(lambda: not any(map(_lives, both)), "they live")
        self.client.serve_again()

    def _pids(self) -> dict[str, int]:
        document = self.status()
        assert document is not None
        return document

    # -- what the model says -------------------------------------------------------------------

    def ours(self) -> dict[str, ImageFiles]:
        found = {}
        for point, stack in self.stacks.items():
            for entry in stack:
                if isinstance(entry, ImageFiles):
                    found[point] = entry
        return found

    def on_top(self, point: str) -> ImageFiles | None:
        stack = self.stacks[point]
        return stack[-1] if stack and isinstance(stack[-1], ImageFiles) else None

    def is_plain(self) -> bool:
        """Is nothing open, and nothing mounted on ours or in it?"""
        tmpfs = any(TMPFS in stack for stack in self.stacks.values())
        return not (self.files or self.inner or tmpfs)

    def is_held(self, point: str) -> bool:
        return point in self.inner or any(f.point == point for f in self.files)

    # -- what there is -------------------------------------------------------------------------

    def check(self, *, every_byte: bool = False) -> None:
        """The kernel, the daemon and the model agree."""
        self.said = ""
        shown = {point: self._types(point) for point in POINTS}
        wanted = {
            point: ["erofs" if isinstance(e, ImageFiles) else e for e in stack]
            for point, stack in self.stacks.items()
        }
        assert shown == wanted, self.log()
        until(lambda: self.client.runs() == self.running, f"running: {not self.running}")
        if self.running:
            told = {str(self.base / p): i.name for p, i in self.ours().items()}
            until(lambda: self._told() == told, f"status: {self._told()}, not {told}\n{self.log()}")
        for point in POINTS:
            image = self.on_top(point)
            if image is not None:
                hidden = f"{INNER}/" if point in self.inner else "/"
                names = sorted(n for n in image.digests if not n.startswith(hidden))
                for name in names if every_byte else names[:: len(names) - 1]:
                    self._compare(image, name, self.base / point / name)
        for file in self.files:
            with contextlib.suppress(OSError) if self.full else contextlib.nullcontext():
                os.lseek(file.fd, 0, os.SEEK_SET)
                with open(os.dup(file.fd), "rb") as f:
                    found = hashlib.sha256(f.read()).hexdigest()
                assert found == file.image.digests[file.name], f"open {file}\n{self.log()}"

    def believe_the_kernel(self) -> None:
        """After commands at once, whose order is not known: the kernel's mounts are the model,
        if the daemon says the same."""
        self.running = self.client.runs()
        by_name = {image.name: image for image in self.images}
        told = self._told() if self.running else {}
        for point in POINTS:
            types = self._types(point)
            at = str(self.base / point)
            assert types.count("erofs") <= 1, f"{types} at {point}\n{self.log()}"
            assert not ("erofs" in types and at not in told), f"{point} is served by nobody: {told}"
            self.stacks[point] = [by_name[told[at]] if t == "erofs" else t for t in types]

    def _types(self, point: str) -> list[str]:
        at = str(self.base / point)
        return [m.fstype for m in mountinfo.mounts() if m.mountpoint == at]

    def _told(self) -> dict[str, str]:
        document = self.status() or {"mounts": []}
        return {m["mountpoint"]: m["image"] for m in document["mounts"] if m["mounted"]}

    def _compare(self, image: ImageFiles, name: str, path: Path) -> None:
        try:
            data = path.read_bytes()
        except OSError:
            if self.full:
                return
            raise
        good = hashlib.sha256(data).hexdigest() == image.digests[name]
        zeros = not data.strip(b"\0")
        assert good, f"{path}: {'zeros' if zeros else 'other bytes'}\n{self.log()}"

    def log(self) -> str:
        with contextlib.suppress(OSError):
            return (self.root / "daemon.log").read_text(errors="replace")[-4000:]
        return ""

    # -- the disk ------------------------------------------------------------------------------

    def fill(self) -> None:
        room = os.statvfs(self.base / "disk")
        with (self.base / "disk" / "filler").open("wb") as f, contextlib.suppress(OSError):
            os.posix_fallocate(f.fileno(), 0, room.f_bavail * room.f_frsize - (1 << 20))
            while True:
                f.seek(0, os.SEEK_END)
                f.write(b"x" * 65536)
                f.flush()
        self.full = True

    def make_room(self) -> None:
        (self.base / "disk" / "filler").unlink(missing_ok=True)
        self.full = False

    # -- the end -------------------------------------------------------------------------------

    def close(self) -> None:
        """Whatever happened before, nothing is left."""
        for file in self.files:
            os.close(file.fd)
        with contextlib.suppress(OSError):
            self.make_room()
        for pid in _daemons(self.root):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        for mount in reversed(mountinfo.mounts()):
            if mount.mountpoint.startswith(f"{self.base}/") and mount.mountpoint != str(
                self.base / "disk"
            ):
                run("umount", "-l", mount.mountpoint, check=False)
        deadline = time.monotonic() + PATIENCE_S
        while (pids := _daemons(self.root)) and time.monotonic() < deadline:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        run("umount", "-l", self.base / "disk", check=False)
        run("umount", "-l", self.base, check=False)
        shutil.rmtree(self.base, ignore_errors=True)


def _lives(pid: int) -> bool:
    """A thread may have its descriptors open when the first one is a zombie already."""
    with contextlib.suppress(OSError):
        threads = os.listdir(f"/proc/{pid}/task")
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return stat != "Z" or len(threads) > 1
    return False


def _daemons(root: Path) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit():
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if str(root).encode() in words and b"nydus_fscache.daemon.main" in words:
                    found.append(int(entry.name))
    return found


@contextlib.contextmanager
def prepared() -> Iterator[tuple[list[ImageFiles], Path]]:
    """The images, and an empty disk; for many worlds."""
    base = Path(tempfile.mkdtemp(prefix="nydus-model-images-"))
    try:
        images = make_images(base)
        disk = base / "disk.img"
        with disk.open("wb") as f:
            f.truncate(DISK_MIB << 20)
        run("mkfs.ext4", "-q", "-F", disk)
        yield images, disk
    finally:
        shutil.rmtree(base, ignore_errors=True)
