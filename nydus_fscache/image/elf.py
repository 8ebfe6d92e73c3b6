"""What a program needs to start: libraries and interpreters, read off its file.

ELF as in the gABI ("Object Files", "Program Loading and Dynamic Linking"), 64 bit, little endian;
scripts by their ``#!`` line (execve(2)).  The bytes are an image's, so they may be hostile: counts
and lengths are bounded, and whatever does not fit is "needs nothing".
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import field

from rafs_v6.values import dataclass

MAGIC = b"\x7fELF\x02\x01"
SCRIPT = b"#!"
HEAD = 64  # bytes that tell the kind
MAX_SEGMENTS = 64
MAX_DYNAMIC = 512  # entries
MAX_NEEDED = 128
MAX_NAME = 256

_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NEEDED, _DT_STRTAB, _DT_RPATH, _DT_RUNPATH = 1, 5, 15, 29

ReadAt = Callable[[int, int], bytes | None]  # offset in the file, length; None: not here yet


@dataclass(slots=True)
class Needs:
    """``paths``: absolute ones.  ``libraries``: sonames, to be found in ``search`` and where the
    loader looks."""

    paths: list[str] = field(default_factory=list)
    libraries: list[str] = field(default_factory=list)
    search: list[str] = field(default_factory=list)


class NotHereYetError(Exception):
    """A part of the file that tells is not here."""


def _read(read_at: ReadAt, off: int, length: int) -> bytes:
    data = read_at(off, length)
    if data is None:
        raise NotHereYetError
    return data


def needs(read_at: ReadAt) -> Needs:
    """Raises ``NotHereYetError``."""
    head = _read(read_at, 0, HEAD)
    try:
        if head.startswith(MAGIC):
            return _of_elf(read_at, head)
        if head.startswith(SCRIPT):
            return _of_script(_read(read_at, 0, MAX_NAME))
    except (struct.error, ValueError):
        pass
    return Needs()


def _of_script(line: bytes) -> Needs:
    """The interpreter, and the program that ``env`` is to find."""
    words = line.partition(b"\n")[0].removeprefix(SCRIPT).split(maxsplit=1)
    if not words:
        return Needs()
    found = Needs(paths=[words[0].decode()])
    rest = words[1].split() if len(words) > 1 else []
    program = next((word for word in rest if not word.startswith(b"-")), b"")
    if words[0].endswith(b"/env") and program and b"/" not in program:
        found.paths.append(f"/usr/bin/{program.decode()}")
    return found


def _of_elf(read_at: ReadAt, head: bytes) -> Needs:
    (table,) = struct.unpack_from("<Q", head, 32)
    size, count = struct.unpack_from("<HH", head, 54)
    if size != 56 or not 0 < count <= MAX_SEGMENTS:
        return Needs()
    found, loads, dynamic = Needs(), [], b""
    segments = _read(read_at, table, size * count)
    for at in range(0, size * count, size):
        kind, _, off, addr, _, length = struct.unpack_from("<IIQQQQ", segments, at)
        if kind == _PT_LOAD:
            loads.append((addr, off, length))
        elif kind == _PT_INTERP and length <= MAX_NAME:
            found.paths.append(_read(read_at, off, length).partition(b"\0")[0].decode())
        elif kind == _PT_DYNAMIC:
            dynamic = _read(read_at, off, min(length, 16 * MAX_DYNAMIC))
    entries = [struct.unpack_from("<QQ", dynamic, at) for at in range(0, len(dynamic) - 15, 16)]
    strings = next((value for tag, value in entries if tag == _DT_STRTAB), None)
    base = next((off + strings - addr for addr, off, length in loads
                 if strings is not None and addr <= strings < addr + length), None)  # fmt: skip
    if base is None:
        return found

    def text(value: int) -> str:
        return _read(read_at, base + value, MAX_NAME).partition(b"\0")[0].decode()

    for tag, value in entries:
        if tag == 0:
            break
        if tag == _DT_NEEDED and len(found.libraries) < MAX_NEEDED:
            found.libraries.append(text(value))
        elif tag in (_DT_RPATH, _DT_RUNPATH):
            found.search += text(value).split(":")[:8]
    return found
