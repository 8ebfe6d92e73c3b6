"""Extended attributes: which of them an image can have, and their bytes (format.md 1.12)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rafs_v6.errors import shown
from rafs_v6.format.erofs import EROFS_XATTR_IBODY_SIZE, XATTR_ENTRY, XATTR_PREFIXES

_NAME_MAX = 255  # XATTR_NAME_MAX of Linux
_VALUE_MAX = 65536  # XATTR_SIZE_MAX
_SHOWN_MAX = 100  # names that are told apart in warnings

Warn = Callable[[str], None]
"""Is told of what an image cannot have and leaves out."""


class LinuxXattrs:
    """Keeps what Linux can have: the names of other systems are left out, and counted.

    ``report``, at the end, warns once for each name.
    """

    def __init__(self) -> None:
        self._left_out: dict[bytes, tuple[bytes, int]] = {}  # the first path, how many

    def of(self, xattrs: Mapping[bytes, bytes], path: bytes) -> Mapping[bytes, bytes]:
        """``xattrs`` of ``path``, without those that Linux cannot have."""
        bad = [key for key, value in xattrs.items() if not _is_linux(key, value)]
        for key in bad:
            self.leave_out(key, path)
        return {k: v for k, v in xattrs.items() if k not in bad} if bad else xattrs

    def leave_out(self, key: bytes, path: bytes) -> None:
        key = key if key in self._left_out or len(self._left_out) < _SHOWN_MAX else b"(others)"
        first, count = self._left_out.get(key, (path, 0))
        self._left_out[key] = first, count + 1

    def report(self, warn: Warn | None) -> None:
        for key, (path, count) in self._left_out.items() if warn is not None else ():
            more = f" (and {count - 1} more)" if count > 1 else ""
            assert warn is not None
            warn(
                f"left out, Linux has no such xattr: {shown(key[:_NAME_MAX])} of"
                f" {shown(path)}{more}"
            )


def _is_linux(key: bytes, value: bytes) -> bool:
    found = xattr_index(key)
    if found is None or len(key) > _NAME_MAX or b"\0" in key or len(value) > _VALUE_MAX:
        return False
    index, rest = found
    return bool(rest) or not XATTR_PREFIXES[index].endswith(b".")


def xattr_index(key: bytes) -> tuple[int, bytes] | None:
    """(name index, rest of the name), or None when the format has no such prefix (1.12)."""
    for index, prefix in XATTR_PREFIXES.items():
        whole = not prefix.endswith(b".")
        if (key == prefix) if whole else key.startswith(prefix):
            return index, key[len(prefix) :]
    return None


def pack_xattrs(xattrs: Mapping[bytes, bytes]) -> bytes:
    """Sorted by name: upstream's order is random, and the same input must give the same bytes."""
    if not xattrs:
        return b""
    out = bytearray(EROFS_XATTR_IBODY_SIZE)
    for key, value in sorted(xattrs.items()):
        found = xattr_index(key)
        assert found is not None
        index, rest = found
        out += XATTR_ENTRY.pack(len(rest), index, len(value)) + rest + value
        out += bytes(-len(out) % 4)
    return bytes(out)
