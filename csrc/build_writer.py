"""cffi builder of rafs_v6._writer: the image builder's inner loop (writer.h) on the codecs."""

from __future__ import annotations

from build_codec import CODEC_LIBS, CODEC_SOURCES, INCLUDES, cdef_of, compile_args
from build_codec import ffi as codec_ffi
from cffi import FFI

ffi = FFI()
ffi.include(codec_ffi)
ffi.cdef(cdef_of("writer/writer.h"))
ffi.set_source(
    "rafs_v6._writer",
    '#include "base.h"\n#include "rafs.h"\n#include "writer.h"\n',
    sources=[
        *CODEC_SOURCES,
        "csrc/writer/batch.c",
        "csrc/writer/chunks.c",
        "csrc/writer/tables.c",
        "csrc/writer/gather.c",
        "csrc/writer/gunzip.c",
        "csrc/writer/layout.c",
        "csrc/writer/records.c",
        "csrc/writer/render.c",
        "csrc/writer/scan.c",
    ],
    include_dirs=INCLUDES,
    libraries=CODEC_LIBS,
    extra_compile_args=[*compile_args(), "-D_GNU_SOURCE"],
)
