"""The bootstrap out of its layer: a tar, usually gzip, with ``image/image.boot``.

Memory and time are bounded before they are spent: by the size of the layer, by
the size of the bootstrap, and by what a layer may unpack to until it is found.
"""

from __future__ import annotations

import io
import tarfile
import zlib

from nydus_fscache.errors import BadImage

BOOTSTRAP_PATHS = ("image/image.boot", "image.boot")
LAYER_LIMIT = 1 << 30
BOOTSTRAP_LIMIT = 1 << 30
# bootstraps compress 3 to 10 fold; what needs more than this is a bomb
_RATIO_LIMIT = 200
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
    if layer[:2] == b"\x1f\x8b":
        limit = max(_UNPACKED_FLOOR, len(layer) * _RATIO_LIMIT)
        source: io.BufferedIOBase = io.BufferedReader(_Gunzip(layer, limit), 256 * 1024)
    else:
        source = io.BytesIO(layer)
    try:
        with tarfile.open(fileobj=source, mode="r|") as tar:
            for member in tar:
                if member.name.removeprefix("./") in BOOTSTRAP_PATHS and member.isreg():
                    return _content(tar, member)
    except (tarfile.TarError, zlib.error, EOFError) as e:
        raise BadImage(f"the bootstrap layer is damaged: {e}", hint="push it again") from e
    raise BadImage("the bootstrap layer has no image/image.boot", hint="convert the image again")


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    if not 0 < member.size <= BOOTSTRAP_LIMIT:
        raise BadImage(f"a bootstrap of {member.size} bytes", hint="convert the image again")
    file = tar.extractfile(member)
    data = file.read(member.size) if file else b""
    if len(data) != member.size:
        raise BadImage("the bootstrap layer ends in the middle of the bootstrap")
    return data
