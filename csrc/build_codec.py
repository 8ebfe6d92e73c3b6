"""cffi builder of rafs_v6._codec: chunk maps, codecs and digests (rafs.h)."""

from __future__ import annotations

import os
import re
from pathlib import Path

from cffi import FFI

CSRC = Path(__file__).resolve().parent
INCLUDES = [str(CSRC / room) for room in ("codec", "writer", "core")]
CODEC_SOURCES = [
    "csrc/codec/chunkmap.c",
    "csrc/codec/chunktable.c",
    "csrc/codec/codec.c",
    "csrc/codec/units.c",
    "csrc/codec/threads.c",
    "csrc/codec/zran.c",
    "csrc/codec/xts.c",
    "csrc/codec/digest.c",
    "csrc/codec/crypto.c",
    "csrc/codec/blake3.c",
    "csrc/codec/validate.c",
]
CODEC_LIBS = ["zstd", "lz4", "z"]


def cdef_of(header: str) -> str:
    """The declarations of a header of ours, which is written to be readable by cffi."""
    text = (CSRC / header).read_text(encoding="utf-8")
    return re.sub(r"(?m)^#(pragma|include|ifndef|endif)\b.*$", "", text)


def compile_args() -> list[str]:
    return ["-O3", "-std=gnu11", "-Wall", "-Wextra", *os.environ.get("NYDUS_CFLAGS", "").split()]


ffi = FFI()
ffi.cdef(cdef_of("codec/rafs.h"))
ffi.set_source(
    "rafs_v6._codec",
    '#include "base.h"\n#include "rafs.h"\n',
    sources=CODEC_SOURCES,
    include_dirs=INCLUDES,
    libraries=CODEC_LIBS,
    extra_compile_args=compile_args(),
)
