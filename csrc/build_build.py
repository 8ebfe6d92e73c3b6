"""cffi builder of rafs_v6._build: the image builder's inner loop (build.h) on the codecs."""

from __future__ import annotations

from build_codec import CODEC_LIBS, CODEC_SOURCES, CSRC, cdef_of, compile_args
from build_codec import ffi as codec_ffi
from cffi import FFI

ffi = FFI()
ffi.include(codec_ffi)
ffi.cdef(cdef_of("build.h"))
ffi.set_source(
    "rafs_v6._build",
    '#include "base.h"\n#include "rafs.h"\n#include "build.h"\n',
    sources=[
        *CODEC_SOURCES,
        "csrc/build.c",
        "csrc/buildtable.c",
        "csrc/gunzip.c",
        "csrc/layout.c",
    ],
    include_dirs=[CSRC],
    libraries=CODEC_LIBS,
    extra_compile_args=[*compile_args(), "-D_GNU_SOURCE"],
)
