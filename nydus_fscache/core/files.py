"""What files of an image say: of which a chunk is the first, of what kind a name is, what a module
imports (``nf_files_of``, ``nf_kind_of``, ``nf_imports``, csrc/core/core.h).
"""

from __future__ import annotations

import mmap
from array import array

from nydus_fscache._core import ffi, lib

ROOM = 1 << 14  # bytes of names


def files_of(
    image: memoryview | mmap.mmap, device: int, chunks: int
) -> tuple[array[int], array[int]]:
    """For each chunk of a device of a validated bootstrap: the nid of a directory that has a file
    which begins with it, and the kind of that file, equal for names with one suffix; 0 for none.

    Six bytes a chunk.  Raises ``OSError`` for what is not a bootstrap.
    """
    directories, kinds = array("I", bytes(4 * chunks)), array("H", bytes(2 * chunks))
    if chunks:
        with (
            ffi.from_buffer("uint8_t[]", image) as data,
            ffi.from_buffer("uint32_t[]", directories) as nids,
            ffi.from_buffer("uint16_t[]", kinds) as numbers,
        ):
            rc = lib.nf_files_of(data, len(data), device, chunks, nids, numbers)
        if rc < 0:
            raise OSError(-rc, "no files")
    return directories, kinds


def kind_of(name: bytes) -> int:
    """Of a file's name, as of ``files_of``."""
    return lib.nf_kind_of(name, len(name))


def imports_of(data: bytes) -> list[bytes]:
    """What a module of compiled Python, or text, says it imports; at most 256 names, as paths:
    b"json/decoder", b"./sibling", b"../other"."""
    out = ffi.new("uint8_t[]", ROOM)
    with ffi.from_buffer("uint8_t[]", data) as view:
        used = lib.nf_imports(view, len(data), out, ROOM)
    return bytes(ffi.buffer(out, used)).split(b"\0")[:-1]
