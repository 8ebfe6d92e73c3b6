"""``nydus-image`` as a child process: ours, or any other with the same options.

Layers go in and blobs come out through named pipes, so neither lies on the disk here.
A child never outlives its call; its last lines are in the error when it fails.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from select import POLLIN, poll
from typing import Any

from nydus_fscache import __version__
from nydus_fscache.convert.errors import ConvertError, Stopped
from nydus_fscache.errors import UsageError

log = logging.getLogger("builder")

# By its entry point, as this room must not import it: it has the backends that rafs_v6 lacks.
OWN = (
    sys.executable, "-c",
    "import sys; from nydus_fscache.cli.nydus_image import main; sys.exit(main())",
)  # fmt: skip
_PIPE = 1 << 20
_TICK_S = 0.05
_REAP_S = 2.0
_LAST_LINES = 8
_VERSION = re.compile(r"Version:\s*(v.*)")


class Builder:
    """``program``: empty for our own.  ``stop`` ends the children of all calls."""

    def __init__(self, program: str, prefetch: bytes, stop: threading.Event) -> None:
        self.command: tuple[str, ...] = OWN
        if program:
            found = shutil.which(program)
            if found is None:
                raise UsageError(
                    f"failed to find nydus-image binary {program!r}",
                    hint="leave --nydus-image away: nydusify has one",
                )
            self.command = (found,)
        self._prefetch = prefetch
        self._stop = stop

    def version(self) -> str:
        """For the manifest's annotation; empty when it does not say."""
        if self.command == OWN:
            return f"nydus-fscache v{__version__}"
        done = subprocess.run(
            [*self.command, "--version"], capture_output=True, check=False, timeout=60
        )
        found = _VERSION.search(done.stdout.decode(errors="replace"))
        return found[1].strip() if found else ""

    def pack(
        self, options: Sequence[str], directory: Path, layer: Iterable[bytes],
        take: Callable[[memoryview], None],
    ) -> None:  # fmt: skip
        """``create`` with ``options``: ``layer`` goes in, ``take`` gets the blob in pieces.

        ``take`` got everything when this returns, and the child ended well.
        """
        target, source = directory / "blob.rafs", directory / "blob.targz"
        for path in (target, source):
            os.mkfifo(path, 0o640)
        words = ["create", "--log-level", "warn", *options, "--blob", str(target), str(source)]
        try:
            with _Child([*self.command, *words], self._stop) as child:
                prefetch = self._prefetch if "--prefetch-policy" in options else b""
                feeding = _Feeding(child, source, prefetch, layer)
                try:
                    _drain(child, target, take)
                except BaseException:
                    child.kill()
                    raise
                finally:
                    failed = feeding.end()
                child.finish(failed)
        finally:
            for path in (target, source):
                path.unlink(missing_ok=True)

    def run(self, words: Sequence[str], *, prefetch: bool = False) -> None:
        """Any other command, to its end."""
        with _Child([*self.command, *words], self._stop) as child:
            child.feed(self._prefetch if prefetch else b"")
            child.finish(None)


@cache
def _mortal() -> tuple[str, ...]:
    """So that a child does not outlive a killed parent: it would wait at a named pipe for ever."""
    program = shutil.which("setpriv")  # of util-linux
    return (program, "--pdeathsig", "KILL", "--") if program else ()


@contextlib.contextmanager
def secret_file(path: Path, config: Mapping[str, Any]) -> Iterator[Path]:
    """``config`` as JSON in a file for the block, as other users see the words of a process."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "w") as file:
            json.dump(config, file)
        yield path
    finally:
        path.unlink(missing_ok=True)


class _Child:
    """Kills the process when the block is left before it ended."""

    def __init__(self, argv: Sequence[str], stop: threading.Event) -> None:
        self._argv, self._stop = tuple(argv), stop
        self._lines: deque[str] = deque(maxlen=_LAST_LINES)
        # Its own group: Ctrl-C is ours to handle, and ends it in order.
        self.process = subprocess.Popen(
            [*_mortal(), *argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, process_group=0,
        )  # fmt: skip
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()
        self._reap()
        self._listener.join(1)
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()

    def _reap(self) -> None:
        """It was killed.  A signal in the middle of ``poll`` leaves its lock taken for good."""
        try:
            self.process.wait(_REAP_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.process.pid, 0)
            self.process.returncode = -signal.SIGKILL

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)

    def feed(self, text: bytes) -> None:
        """To its standard input, which then ends."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(text)
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()

    def stopped(self) -> bool:
        return self._stop.is_set()

    def ended(self) -> bool:
        """Looks for a reason to stop, too."""
        if self._stop.is_set():
            raise Stopped("stopped")
        return self.process.poll() is not None

    def finish(self, failed: BaseException | None) -> None:
        """Its end; ``failed``: the way of its input, if anything."""
        while self.process.poll() is None:
            if self._stop.is_set():
                raise Stopped("stopped")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_TICK_S)
        self._listener.join(5)
        if failed is not None and not isinstance(failed, BrokenPipeError):
            raise failed
        code = self.process.returncode
        if code:
            said = " | ".join(self._lines) or "it said nothing"
            how = f"signal: {-code}" if code < 0 else f"exit status {code}"
            log.error("fail to run %s: %s", list(self._argv), how)
            raise ConvertError(f"nydus-image {self._word()} failed ({how}): {said}")
        if failed is not None:
            raise ConvertError(f"nydus-image {self._word()} read only a part of the layer")

    def _word(self) -> str:
        words = self._argv[len(OWN) :] if self._argv[: len(OWN)] == OWN else self._argv[1:]
        return next((word for word in words if not word.startswith("-")), "")

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            text = line.decode(errors="replace").rstrip()[:4096]
            if text:
                self._lines.append(text)
                log.info("%s", text)


class _Feeding:
    """Writes the layer into a pipe, beside the caller."""

    def __init__(
        self, child: _Child, path: Path, prefetch: bytes, pieces: Iterable[bytes]
    ) -> None:
        self._child, self._path, self._pieces = child, path, pieces
        self._prefetch = prefetch
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)
        self._thread.start()

    def end(self) -> BaseException | None:
        """Why not all went in; None when it did."""
        while self._thread.is_alive() and not self._child.stopped():
            self._thread.join(_TICK_S)
        return self._failed

    def _run(self) -> None:
        try:
            self._child.feed(self._prefetch)
            fd = _open_writer(self._child, self._path)
            with os.fdopen(fd, "wb", buffering=0) as pipe:
                for piece in self._pieces:
                    view = memoryview(piece)
                    while view:
                        view = view[pipe.write(view) :]
        except BrokenPipeError as e:
            self._failed = e  # the child knows why
        except BaseException as e:
            self._failed = e
            self._child.kill()


def _open_writer(child: _Child, path: Path) -> int:
    while not child.ended():
        try:
            fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as e:
            if e.errno != errno.ENXIO:
                raise
            time.sleep(_TICK_S / 5)
            continue
        os.set_blocking(fd, True)
        _widen(fd)
        return fd
    raise BrokenPipeError


def _drain(child: _Child, path: Path, take: Callable[[memoryview], None]) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _widen(fd)
        waiting = poll()
        waiting.register(fd, POLLIN)
        buf = memoryview(bytearray(_PIPE))
        for _ in _ready(child, waiting):
            try:
                count = os.readv(fd, [buf])
            except BlockingIOError:
                continue
            if not count:
                return
            take(buf[:count])
    finally:
        os.close(fd)


def _ready(child: _Child, waiting: Any) -> Iterator[None]:
    """Each time that there may be data; ends with the child, when nothing is left in the pipe."""
    while True:
        ended = child.ended()
        if waiting.poll(0 if ended else int(_TICK_S * 1000)):
            yield
        elif ended:
            return


def _widen(fd: int) -> None:
    # Smaller pipes work, too: users may be limited (pipe-user-pages-soft).
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE)
