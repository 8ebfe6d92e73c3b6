"""What containerd knows of one container: asked through its own client, ``ctr``."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from nydus_fscache.convert.errors import ConvertError
from nydus_fscache.errors import UsageError
from nydus_fscache.registry.leftovers import Leftover
from rafs_v6.values import dataclass

log = logging.getLogger("converter")

_PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Container:
    """``upper``: its writable directory.  ``pid``: of its task, 0 when none runs."""

    name: str
    image: str
    upper: Path
    pid: int


class Containers:
    """``address``: containerd's socket.  ``UsageError`` where there is none."""

    def __init__(self, address: str, namespace: str) -> None:
        program = shutil.which("ctr")
        if program is None:
            raise UsageError(
                "commit asks containerd through ctr, which is not installed",
                hint="without containerd: --source IMAGE --upper-dir DIRECTORY",
            )
        if not Path(address).is_socket():
            raise UsageError(
                f"{address} is not a socket of containerd", hint="name it: --containerd-address"
            )
        self._ctr = (program, "--address", address, "--namespace", namespace)

    def find(self, name: str) -> Container:
        """By its id, or by the beginning of one."""
        listed = self._ask("containers", "ls", "-q").split()
        fitting = [one for one in listed if one.startswith(name)] if name else []
        if name not in listed:
            if not fitting:
                raise UsageError(f"no container found with ID : {name}", hint="ctr containers ls")
            if len(fitting) > 1:
                raise UsageError(f"ambiguous ID : {name} is the beginning of {len(fitting)}")
            (name,) = fitting
        try:
            info = json.loads(self._ask("containers", "info", name))
            image, key = str(info["Image"]), str(info["SnapshotKey"])
            snapshotter = str(info["Snapshotter"])
        except (ValueError, KeyError, TypeError) as e:
            raise ConvertError(f"containerd's answer about {name} does not parse: {e}") from e
        mounts = self._ask("snapshots", "--snapshotter", snapshotter, "mounts", "/", key)
        return Container(name, image, _upper_of(mounts, name), self._pid(name))

    @contextmanager
    def paused(self, container: Container) -> Iterator[None]:
        """Its task stands still in the block, and goes on however that ends."""
        if not container.pid:
            yield
            return
        # A signal may come while ctr pauses it or wakes it.
        leftover = Leftover(lambda: self._resume(container.name))
        try:
            self._ask("tasks", "pause", container.name)
            yield
        finally:
            self._resume(container.name)
            leftover.forget()

    def _resume(self, name: str) -> None:
        if self._task(name)[1] in ("PAUSED", "PAUSING"):
            self._ask("tasks", "resume", name)

    def _pid(self, name: str) -> int:
        pid, state = self._task(name)
        return pid if state == "RUNNING" else 0

    def _task(self, name: str) -> tuple[int, str]:
        """Its process and its state; 0 and nothing without one."""
        for line in self._ask("tasks", "ls").splitlines()[1:]:
            words = line.split()
            if len(words) >= 3 and words[0] == name:
                return int(words[1]), words[2]
        return 0, ""

    def _ask(self, *words: str) -> str:
        # A group of its own: Ctrl-C must not take a resume with it.
        done = subprocess.run(
            [*self._ctr, *words], capture_output=True, text=True, check=False,
            timeout=_PATIENCE_S, process_group=0,
        )  # fmt: skip
        if done.returncode:
            raise ConvertError(f"ctr {' '.join(words[:2])}: {done.stderr.strip()[-500:]}")
        return done.stdout


def _upper_of(mounts: str, name: str) -> Path:
    """From what ``ctr snapshots mounts`` prints: the words of a mount command."""
    for word in mounts.split():
        for option in word.split(","):
            key, equals, value = option.partition("=")
            if key == "upperdir" and equals:
                return Path(value)
    raise ConvertError(
        f"the container {name} has no overlay with a writable directory",
        hint="only containers over overlayfs can be committed",
    )


def tree_at(pid: int, path: str, directory: Path) -> Iterator[bytes]:
    """A tar of ``path`` as the process sees it, mounts within included.  ``directory``: scratch."""
    inside = path.strip("/")
    if not inside or ".." in inside.split("/"):
        raise UsageError(f"--with-path {path} is not an absolute path below the root")
    words: Sequence[str] = (
        "tar", "--create", "--format=pax", "--xattrs", "--numeric-owner", "--sort=name",
        "--pax-option=delete=atime,delete=ctime", f"--directory=/proc/{pid}/root", "--", inside,
    )  # fmt: skip
    with (directory / "tar.log").open("w+b") as said:
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=said, process_group=0)
        assert process.stdout is not None
        try:
            while piece := process.stdout.read(1 << 20):
                yield piece
            if process.wait():
                said.seek(0)
                last = said.read()[-500:].decode(errors="replace").strip()
                raise ConvertError(f"--with-path {path}: {last}")
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
