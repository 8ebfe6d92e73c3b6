"""What a disk may hold after a power cut, from a record of what was written to it.

``record`` runs a command under strace.  ``Disk`` replays what it did below one
directory, and makes what could be there had the power gone at some moment: each
change that no finished fsync covers is kept or lost by itself, contents page by
page, names one by one, in any order.  Contents are covered by an fsync of their
file, names by one of their directory, and by nothing else.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

PAGE = 4096
CALLS = "openat,write,pwrite64,ftruncate,fsync,fdatasync,rename,unlink"

_LINE = re.compile(r"(\d+) +(?:<\.\.\. (\w+) resumed>|(\w+)\()(.*)")
_TEXT = r'"((?:\\x[0-9a-f]{2})*)"'
_ON_FILE = re.compile(r"\d+<((?:\\x[0-9a-f]{2})+)>(?:, )?(.*)", re.DOTALL)  # none "(deleted)"


@contextmanager
def record(command: list[str], log: Path, stderr: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command and all that it starts, which must end with the block."""
    with stderr.open("ab") as f:
        strace = ["strace", "-f", "-y", "-xx", "-s", str(4 << 20), "-o", str(log)]
        process = subprocess.Popen([*strace, "-e", f"trace={CALLS}", *command], stderr=f)
    try:
        yield process
        process.wait(60)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()


def _bytes(escaped: str) -> bytes:
    return bytes.fromhex(escaped.replace("\\x", ""))


@dataclass
class _Change:
    """Of a file's contents: ``data`` at ``off``, or (data None) its length set to ``off``."""

    begin: int
    end: int
    off: int
    data: bytes | None

    def apply(self, contents: bytearray) -> None:
        if self.data is None:
            del contents[self.off :]
        contents += bytes(max(0, self.off - len(contents)))
        if self.data is not None:
            contents[self.off : self.off + len(self.data)] = self.data

    def pages(self) -> Iterator[_Change]:
        if self.data is None:
            yield self
            return
        for at in range(0, len(self.data), PAGE):
            yield _Change(self.begin, self.end, self.off + at, self.data[at : at + PAGE])


@dataclass
class _File:
    changes: list[_Change] = field(default_factory=list)
    syncs: list[tuple[int, int]] = field(default_factory=list)

    def length(self) -> int:
        contents = bytearray()
        for change in self.changes:
            change.apply(contents)
        return len(contents)

    def after(self, moment: int, dice: random.Random, kept: str) -> bytes:
        contents = bytearray()
        sure, maybe = _split(self.changes, self.syncs, moment)
        for change in sure:
            change.apply(contents)
        length = len(contents)
        for change in maybe:
            for part in change.pages():
                if kept == "all" or (kept == "some" and dice.random() < 0.5):
                    part.apply(contents)
                length = part.off if part.data is None else max(length, part.off + len(part.data))
        if kept == "length":  # the inode was written, and none of the data
            _Change(0, 0, length, None).apply(contents)
        return bytes(contents)


@dataclass
class _Naming:
    """A name stands for ``file`` (None: for nothing) from now on."""

    begin: int
    end: int
    file: _File | None


# What is kept, by file name, of what may be lost: of names, and of contents
Choice = Callable[[str], tuple[str, str]]
NAMES = ("none", "some", "all", "all")
CONTENTS = ("none", "some", "length", "all", "all")


class Disk:
    """Moments are numbers of lines in strace's output."""

    def __init__(self, log: Path, directory: Path, *, careless: str = "") -> None:
        """``careless``: how the names of files end for which an fsync does nothing."""
        self._directory = str(directory)
        self._careless = careless
        self._names: dict[str, list[_Naming]] = {}
        self._syncs: list[tuple[int, int]] = []  # of the directory
        self._unfinished: dict[str, tuple[int, str]] = {}
        self.moments: list[int] = []  # at which something was changed or synced
        with log.open(errors="replace") as f:
            for number, line in enumerate(f):
                self._read(number, line.rstrip("\n"))

    def _read(self, number: int, line: str) -> None:
        found = _LINE.fullmatch(line)
        if found is None:
            return
        pid, resumed, call, rest = found.groups()
        begin = number
        if resumed:
            begin, start = self._unfinished.pop(pid)
            call, rest = resumed, start + rest
        elif rest.endswith("<unfinished ...>"):
            self._unfinished[pid] = number, rest.removesuffix("<unfinished ...>").rstrip()
            return
        arguments, _, result = rest.rpartition(" = ")
        if result and result[0] not in "-?":
            self._apply(call, arguments.rstrip().removesuffix(")"), begin, number)

    def _apply(self, call: str, arguments: str, begin: int, end: int) -> None:
        if call in ("rename", "unlink", "openat"):
            names = [Path(os.fsdecode(_bytes(text))) for text in re.findall(_TEXT, arguments)]
            if names[0].parent == Path(self._directory):
                self._rename(call, [name.name for name in names], arguments, begin, end)
            return
        found = _ON_FILE.fullmatch(arguments)
        path = os.fsdecode(_bytes(found[1])) if found else ""
        if found is None or not path.startswith(self._directory):
            return
        if path == self._directory:
            self._syncs.append((begin, end))
        elif (file := self._file(os.path.basename(path))) is None:
            return
        elif call in ("fsync", "fdatasync"):
            if not (self._careless and path.endswith(self._careless)):
                file.syncs.append((begin, end))
        elif call == "ftruncate":
            file.changes.append(_Change(begin, end, int(found[2]), None))
        else:
            numbers = found[2].rpartition('"')[2].split(", ")
            off = int(numbers[2]) if call == "pwrite64" else file.length()
            data = _bytes(re.findall(_TEXT, found[2])[0])
            file.changes.append(_Change(begin, end, off, data))
        self.moments.append(end)

    def _rename(
        self, call: str, names: list[str], arguments: str, begin: int, end: int
    ) -> None:
        file = self._file(names[0])
        if call == "openat":
            assert file is None or "O_TRUNC" not in arguments, "old inodes get no new contents"
            if file is not None or "O_CREAT" not in arguments:
                return
            file = _File()
        if call == "unlink":
            file = None
        if call == "rename":
            self._names[names[0]].append(_Naming(begin, end, None))
        self._names.setdefault(names[-1], [_Naming(-1, -1, None)]).append(
            _Naming(begin, end, file)
        )
        self.moments.append(end)

    def _file(self, name: str) -> _File | None:
        return self._names[name][-1].file if name in self._names else None

    def cut(self, moment: int, to: Path, dice: random.Random, choose: Choice) -> None:
        """Make in ``to`` what may be left when the power went at ``moment``."""
        for name, namings in self._names.items():
            sure, maybe = _split(namings, self._syncs, moment)
            states = [naming.file for naming in (*sure[-1:], *maybe)]
            named, contents = choose(name)
            file = {"none": states[0], "all": states[-1]}.get(named, dice.choice(states))
            if file is not None:
                (to / name).write_bytes(file.after(moment, dice, contents))
                (to / name).chmod(0o600)


_T = TypeVar("_T", _Change, _Naming)


def _split(
    changes: list[_T], syncs: list[tuple[int, int]], moment: int
) -> tuple[list[_T], list[_T]]:
    """What a finished sync covers, and what else had begun."""
    covered = max((begin for begin, end in syncs if end <= moment), default=0)
    sure = [change for change in changes if change.end <= covered]
    return sure, [c for c in changes if c.end > covered and c.begin <= moment]
