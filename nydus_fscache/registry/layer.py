"""The bootstrap out of its layer: a tar, usually gzip, with ``image/image.boot``.

Memory and time are bounded before they are spent, by what the layer cost to store: it may
unpack to ``_RATIO_LIMIT`` times its size until the bootstrap has been read.
"""

from __future__ import annotations

import io
import zlib

from nydus_fscache.errors import BadImage
from nydus_fscache.registry.tar import Counted, Member, members

BOOTSTRAP_PATHS = ("image/image.boot", "image.boot")
LAYER_LIMIT = 1 << 30
BOOTSTRAP_LIMIT = 1 << 30
# bootstraps compress 3 to 10 fold; a layer that needs more than this is a bomb
_RATIO_LIMIT = 64
_UNPACKED_FLOOR = 64 * 1024 * 1024


class _Gunzip(io.RawIOBase):
    """Decompresses at most ``limit`` bytes of one or several gzip members."""

    def __init__(self, data: bytes, limit: int) -> None:
        self._data = memoryview(data)
        self._inflate = zlib.decompressobj(wbits=31)
        self._rest: bytes | memoryview = self._data
        self._left = limit

    def readable(self) -> bool:
        return True

    def readinto(self, buf: memoryview) -> int:  # type: ignore[override]
        while True:
            out = self._inflate.decompress(self._rest, len(buf))
            self._rest = self._inflate.unconsumed_tail
            if out:
                break
            if not self._inflate.eof:
                if not self._rest:
                    return 0
                continue
            self._rest = self._inflate.unused_data
            if not self._rest:
                return 0
            self._inflate = zlib.decompressobj(wbits=31)
        self._left -= len(out)
        if self._left < 0:
            raise BadImage("the bootstrap layer unpacks to far too much", hint="a hostile image?")
        buf[: len(out)] = out
        return len(out)


def extract_bootstrap(layer: bytes) -> bytes:
    """``BadImage`` when there is none, or when the layer is damaged or a bomb."""
    limit = len(layer)
    source: io.BufferedIOBase = io.BytesIO(layer)
    if layer[:2] == b"\x1f\x8b":
        limit = max(_UNPACKED_FLOOR, len(layer) * _RATIO_LIMIT)
        source = io.BufferedReader(_Gunzip(layer, limit), 256 * 1024)
    counted = Counted(source)
    try:
        for member in members(counted):
            if member.name.removeprefix("./") in BOOTSTRAP_PATHS and member.regular:
                return _content(counted, member, limit)
    except zlib.error as e:
        raise BadImage(f"the bootstrap layer is damaged: {e}", hint="push it again") from e
    raise BadImage("the bootstrap layer has no image/image.boot", hint="convert the image again")


def _content(source: Counted, member: Member, limit: int) -> bytes:
    if not 0 < member.size <= min(BOOTSTRAP_LIMIT, limit):
        raise BadImage(f"a bootstrap of {member.size} bytes", hint="convert the image again")
    data = source.read(member.size)
    if len(data) != member.size:
        raise BadImage("the bootstrap layer ends in the middle of the bootstrap")
    return data
