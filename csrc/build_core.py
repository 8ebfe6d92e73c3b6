"""cffi builder of nydus_fscache._core: the event core (core.h) on top of the codecs (rafs.h)."""

from __future__ import annotations

from build_codec import CODEC_LIBS, CODEC_SOURCES, INCLUDES, cdef_of, compile_args
from build_codec import ffi as codec_ffi
from cffi import FFI

ffi = FFI()
ffi.include(codec_ffi)
ffi.cdef(cdef_of("core/core.h"))
ffi.set_source(
    "nydus_fscache._core",
    '#include "base.h"\n#include "rafs.h"\n#include "core.h"\n',
    sources=[
        *CODEC_SOURCES,
        "csrc/core/binding.c",
        "csrc/core/core.c",
        "csrc/core/cachefiles.c",
        "csrc/core/fuse.c",
        "csrc/core/fuse_connections.c",
        "csrc/core/fuse_files.c",
        "csrc/core/fuse_flat.c",
        "csrc/core/fuse_tree.c",
        "csrc/core/tree.c",
        "csrc/core/files.c",
        "csrc/core/imports.c",
        "csrc/core/compiled_python.c",
        "csrc/core/names.c",
        "csrc/core/fanotify.c",
        "csrc/core/fanotify_events.c",
        "csrc/core/fanotify_ring.c",
        "csrc/core/fill.c",
        "csrc/core/filler.c",
        "csrc/core/crew.c",
        "csrc/core/request.c",
        "csrc/core/object.c",
        "csrc/core/trace.c",
        "csrc/core/queue.c",
        "csrc/core/journal.c",
        "csrc/core/waiter.c",
    ],
    include_dirs=INCLUDES,
    libraries=[*CODEC_LIBS, "uring"],
    extra_compile_args=[*compile_args(), "-D_GNU_SOURCE"],
)
