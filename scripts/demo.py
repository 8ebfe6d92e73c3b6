"""What ``scripts/run`` shows: one image, mounted lazily, one program, one table.

Everything lives in one temporary directory; however this ends, the program, the
daemon, the server and the directory are gone afterwards.  Only after SIGKILL it is
the next run that ends the daemon and removes the directory.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from demo_image import CHECKOUT, GOLDEN, Image, built_image, golden_image

from nydus_fscache.cli.fscache.common import require_root
from nydus_fscache.cli.output import size
from nydus_fscache.errors import CacheDirError, DaemonError, FscacheError, KernelRefused
from nydus_fscache.kernel.probe import cache_dir
from nydus_fscache.transport.registry import examine

CLI = [sys.executable, "-m", "nydus_fscache"]
PREFIX = "nydus-fscache-run-"
PATIENCE_S = 120.0
EXIT_SIGNAL = 128


class CommandFailed(FscacheError):
    """A command of ours has failed and has said why."""

    def __init__(self, done: subprocess.Popen[str]) -> None:
        super().__init__(f"nydus-fscache {done.args[len(CLI)]} failed")  # type: ignore[index]
        self.exit_code = done.returncode


class Interrupted(FscacheError):
    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.exit_code = EXIT_SIGNAL + number


def say(text: str) -> None:
    print(f"run: {text}", file=sys.stderr, flush=True)


# -- things that are undone -----------------------------------------------------------------------


class Signals:
    """Signals are noted, and raise only where we look: never between a deed and its undoing."""

    def __init__(self) -> None:
        self._number = 0
        self._woken, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._note)

    def _note(self, number: int, _frame: object) -> None:
        self._number = number

    def check(self) -> None:
        if self._number:
            raise Interrupted(self._number)

    def first_line(self, child: subprocess.Popen[str]) -> str:
        """What ``child`` says first; or the end of waiting for it."""
        assert child.stdout is not None
        ready, _, _ = select.select([child.stdout, self._woken], [], [], PATIENCE_S)
        self.check()
        if not ready:
            raise DaemonError(f"{child.args} said nothing for {PATIENCE_S:.0f} s")
        line = child.stdout.readline()
        if not line:
            raise DaemonError(f"{child.args} ended without a word, status {child.wait()}")
        return line.rstrip()


def lock(directory: Path) -> int:
    """A descriptor that says, while it is open, that ``directory`` is in use."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        directory.stat()  # it may be gone since it was opened
        if os.fstat(fd).st_uid != os.geteuid():
            raise PermissionError(f"{directory} is somebody else's")
    except OSError:
        os.close(fd)
        raise
    return fd


def new_directory(parent: Path) -> tuple[Path, int]:
    """A directory and its lock; another run may sweep it away before it is locked."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            return path, lock(path)


def sweep(parent: Path) -> None:
    """Undo what runs that were killed could not undo."""
    for path in parent.glob(f"{PREFIX}*"):
        try:
            stale = lock(path)
        except OSError:  # in use, just gone, or not ours
            continue
        say(f"{path} was left by a run that was killed: cleaning up")
        wait_for_programs(path)
        end_daemon(path / "root")
        shutil.rmtree(path)
        os.close(stale)


@contextlib.contextmanager
def work_directory() -> Iterator[Path]:
    """Where cache files can live: below the checkout, else below /var/tmp."""
    reasons = []
    for parent in (CHECKOUT / "build", Path("/var/tmp")):
        finding = cache_dir(parent)
        if not finding.ok:
            reasons.append(finding.detail)
            continue
        parent.mkdir(exist_ok=True)
        sweep(parent)
        path, mine = new_directory(parent)
        try:
            yield path
        finally:
            shutil.rmtree(path)
            os.close(mine)
        return
    raise CacheDirError("; ".join(reasons), hint="clone the project onto ext4, xfs or btrfs")


@contextlib.contextmanager
def process(words: list[Any], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """In a session of its own, so that Ctrl-C is ours alone; ended with all its children.

    The kernel ends it when we are killed."""
    child = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *map(str, words)],
        text=True, start_new_session=True, **options,
    )  # fmt: skip
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        if child.stdout is not None:
            child.stdout.close()


def command(*words: Any) -> str:
    """A command of nydus-fscache; it is never cut off, so that it leaves nothing half done."""
    with subprocess.Popen(
        [*CLI, *map(str, words)], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as done:
        output, _ = done.communicate()
    if done.returncode != 0:
        raise CommandFailed(done)
    return str(output)


def wait_for_programs(directory: Path) -> None:
    """The kernel ends what a killed run had started in a mount, but does not wait for that."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        roots = []
        for entry in Path("/proc").glob("[0-9]*/root"):
            with contextlib.suppress(OSError):
                roots.append(entry.readlink())
        if not any(root.is_relative_to(directory) for root in roots):
            return
        time.sleep(0.05)


def end_daemon(root: Path) -> None:
    if (root / "lock").exists():
        command("stop", "--root", root)


# -- the show -------------------------------------------------------------------------------------


def serve_blobs(blobs: Path, args: argparse.Namespace, signals: Signals, cleanup: ExitStack) -> str:
    """HOST:PORT of an HTTP server of ranges, as a registry's blob store is one."""
    words = [sys.executable, CHECKOUT / "tests" / "kit" / "rangeserver.py", blobs]
    words += ["--latency-ms", args.latency_ms, "--mbps", args.mbps]
    server = cleanup.enter_context(process(words, stdout=subprocess.PIPE))
    return f"127.0.0.1:{int(signals.first_line(server))}"


def run_program(image: Image, mountpoint: Path, signals: Signals) -> tuple[float, str]:
    """Seconds to its first line of output, and the line."""
    began = time.monotonic()
    words = ["chroot", mountpoint, *image.program]
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **image.environment}
    with process(words, stdout=subprocess.PIPE, env=environment) as child:
        line = signals.first_line(child)
        took = time.monotonic() - began
        if child.wait(PATIENCE_S) != 0:
            raise DaemonError(f"the program in the image failed, status {child.returncode}")
    return took, line


def status(root: Path) -> dict[str, Any]:
    """What the table needs: the transport, and sums over all blobs."""
    document = json.loads(command("status", "--json", "--root", root))
    sums = {
        key: sum(blob[key] for blob in document["blobs"])
        for key in ("size", "fetched", "requests")
    }
    return {"transport": document["mounts"][0]["transport"], **sums}


def show(args: argparse.Namespace, work: Path, signals: Signals, cleanup: ExitStack) -> None:
    if GOLDEN.is_dir() and not args.build:
        image = golden_image()
    else:
        why = "" if args.build else "no golden images in ../shared: "
        say(f"{why}building an image from this machine's Python")
        image = built_image(work)
        signals.check()
    host = serve_blobs(image.blobs, args, signals, cleanup)
    registry = {"host": host, "repo": "demo", "scheme": "http"}
    backend = work / "backend.json"
    backend.write_text(json.dumps({"type": "registry", "registry": registry}))
    root, mountpoint = work / "root", work / "mnt"
    mountpoint.mkdir()

    say(f"mounting {image.name}, its blobs behind http://{host}")
    cleanup.callback(end_daemon, root)
    try:
        began = time.monotonic()
        command("mount", image.bootstrap, mountpoint, "--backend", backend, "--root", root)
        mounted = time.monotonic() - began
        signals.check()
        say(f"starting {' '.join(image.program)} in a chroot")
        first, line = run_program(image, mountpoint, signals)
        cold = status(root)
        again, _ = run_program(image, mountpoint, signals)
        warm = status(root)
        command("umount", mountpoint, "--root", root)
    except FscacheError:
        if (root / "daemon.log").exists():
            say("the daemon's log ends with\n" + (root / "daemon.log").read_text()[-2000:])
        raise
    say(f"it said: {line}")

    rows = {
        "image": image.name,
        "transport": cold["transport"],
        "image size": f"{size(image.size())} compressed, {size(cold['size'])} unpacked",
        "fetched": f"{size(cold['fetched'])} ({100 * cold['fetched'] / image.size():.1f}%)",
        "requests": str(cold["requests"]),
        "time to mount": f"{mounted:.2f} s (the start of the daemon included)",
        "time to first output": f"{first:.2f} s",
        "the same again": f"{again:.2f} s, {warm['requests'] - cold['requests']} requests",
    }
    width = max(map(len, rows))
    print("\n".join(f"{key.ljust(width)}  {value}" for key, value in rows.items()), flush=True)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/run")
    parser.add_argument("--build", action="store_true")
    parser.add_argument("--latency-ms", type=float, default=0)
    parser.add_argument("--mbps", type=float, default=0)
    return parser.parse_args()


def main() -> int:
    args = options()
    signals = Signals()
    try:
        require_root("scripts/run")
        with ExitStack() as cleanup:
            cleanup.callback(say, "cleaned up")
            work = cleanup.enter_context(work_directory())
            if examine(work).choice is None:
                subprocess.run([*CLI, "doctor", "--root", str(work)], check=False)
                raise KernelRefused("no transport works here", hint="see the remedies above")
            show(args, work, signals, cleanup)
    except FscacheError as e:
        say(f"{e}" + (f"\nhint: {e.hint}" if e.hint else ""))
        return e.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
