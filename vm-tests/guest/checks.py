"""Runs checks inside the virtual machine and tells their outcome on the console.

Guarantees: each check is a process of its own with a deadline, so that one that
hangs in the kernel is reported and the others still run.
"""

from __future__ import annotations

import contextlib
import io
import json
import mmap
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CHECKOUT / "tests" / "kit"))

from rig import Rig  # noqa: E402
from trees import GOLDEN  # noqa: E402

DISK = Path("/mnt/cache")
IMAGES = GOLDEN / "images"
MARK = "@check "  # machine.py looks for it
PATIENCE_S = 90.0
START_PATIENCE_S = 60.0  # for one start of the service


class GuestRig(Rig):
    """Runs commands in this process: to start an interpreter takes seconds here."""

    def run(self, *args: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        from nydus_fscache.cli.fscache.main import main

        words = [str(a) for a in args]
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = main([words[0], "--root", str(self.root), *words[1:]])
            except SystemExit as e:
                code = int(e.code or 0)
        if check and code != 0:
            raise AssertionError(f"{words}: {code}\n{err.getvalue()}\n{self.log()}")
        return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())

    def service_pid(self) -> int:
        """Of a service that answers."""
        deadline = time.monotonic() + START_PATIENCE_S
        while True:
            with contextlib.suppress(AssertionError):
                return int(self.status()["pid"])
            assert time.monotonic() < deadline, f"no service\n{self.log()}"
            time.sleep(0.05)

    def any_service(self) -> int:
        """Of a service that runs, whether it answers yet or not."""
        deadline = time.monotonic() + START_PATIENCE_S
        while True:
            for pid in self.processes():
                with contextlib.suppress(OSError):
                    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                    if not any(word.endswith(b"keeper.py") for word in words):
                        return pid
            assert time.monotonic() < deadline, f"no service\n{self.log()}"
            time.sleep(0.02)

    def kill_service(self) -> None:
        """Returns when a successor answers."""
        pid = self.service_pid()
        os.kill(pid, signal.SIGKILL)
        while self.service_pid() == pid:
            time.sleep(0.02)


def tell(name: str, ok: bool, detail: str) -> None:
    # one write, on a line of its own, whatever else writes to the console
    text = json.dumps({"name": name, "ok": ok, "detail": detail})
    os.write(1, f"\n{MARK}{text}\n".encode())


def check(name: str, work: Callable[[], str | None], seconds: float = PATIENCE_S) -> bool:
    """Run ``work`` in a child; what it returns is shown with the outcome."""
    started = time.monotonic()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        code, detail = 1, ""
        try:
            detail, code = work() or "", 0
        except BaseException:
            detail = traceback.format_exc()[-3000:]
        finally:
            os.write(writer, detail.encode()[:60000])
            os._exit(code)
    os.close(writer)
    status = None
    while status is None and time.monotonic() < started + seconds:
        ended, code = os.waitpid(pid, os.WNOHANG)
        status = code if ended else None
        time.sleep(0.02)
    took = f"{time.monotonic() - started:.1f} s"
    if status is None:
        stack = _stacks()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        tell(name, False, f"not done in {took}\n{stack}")
        return False
    with os.fdopen(reader) as f:
        detail = f.read()
    tell(name, status == 0, f"{detail} ({took})")
    return status == 0


def check_all(checks: Mapping[str, Callable[[], str | None]], seconds: float = PATIENCE_S) -> None:
    for name, work in checks.items():
        check(name, work, seconds)


def _stacks() -> str:
    """Where processes wait in the kernel."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and (command := (entry / "cmdline").read_bytes()):
                for task in (entry / "task").iterdir():
                    where = (task / "stack").read_text()
                    if "cachefiles" in where or "fscache" in where or "erofs" in where:
                        found.append(f"{command[-60:]!r} {task.name}\n{where}")
    return "\n".join(found)[:4000]


def pin_programs() -> list[mmap.mmap]:
    """What a start of the service reads stays in memory over ``forget_data``, as long as these are
    held: to read it again over virtiofs takes minutes on a busy host."""
    import_module("nydus_fscache.daemon.main")
    import_module("nydus_fscache.transport.fuse.mount_image")
    modules = list(sys.modules.values())
    names = [getattr(m, "__cached__", None) or getattr(m, "__file__", None) for m in modules]
    names += [line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()]
    pinned = []
    for name in {n for n in names if n and n.startswith("/")}:
        with contextlib.suppress(OSError, ValueError), Path(name).open("rb") as f:
            mapped = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)
            mapped[:: mmap.PAGESIZE]  # pages that are mapped are not dropped
            pinned.append(mapped)
    return pinned


def forget_data() -> None:
    """As ``drop_caches``, but for names and attributes."""
    Path("/proc/sys/vm/drop_caches").write_text("1")


def drop_caches() -> None:
    """From now on reads go to the cache file, or to the daemon."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def read_all(root: Path) -> None:
    for top, _, names in os.walk(root):
        for name in names:
            path = Path(top, name)
            if path.is_file() and not path.is_symlink():
                path.read_bytes()


def wanted(name: str, at: Path) -> list[tuple[str, str]]:
    """Regular files of an image below its mountpoint, with their digests."""
    entries = map(json.loads, (IMAGES / name / "expected.jsonl").read_text().splitlines())
    return [(f"{at}{e['path']}", e["sha256"]) for e in entries if e["type"] == "reg"]
