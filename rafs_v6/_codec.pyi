"""Types of the cffi module that csrc/build_codec.py makes out of csrc/codec/rafs.h.

Buffers may be anything cffi passes as a pointer: bytes, ffi.from_buffer(), ffi.new().
What each function guarantees, and its errors, are said in rafs.h.
"""

from typing import Any, Protocol

class _Lib(Protocol):
    RAFS_COMP_NONE: int
    RAFS_COMP_LZ4_BLOCK: int
    RAFS_COMP_GZIP: int
    RAFS_COMP_ZSTD: int
    RAFS_DIGEST_BLAKE3: int
    RAFS_DIGEST_SHA256: int
    RAFS_CHUNK_HAS_DIGEST: int
    RAFS_CHUNK_HAS_CRC: int
    RAFS_UNIT_COMPRESSED: int
    RAFS_UNIT_ENCRYPTED: int
    RAFS_UNIT_BATCH: int
    RAFS_UNIT_ZRAN: int
    RAFS_MAX_CHUNK_SIZE: int

    def rafs_cct_decode(
        self,
        cct: Any,
        length: int,
        info: Any,
        chunks: Any,
        units: Any,
        out: Any,
        err: Any,
        errlen: int,
        /,
    ) -> int: ...
    def rafs_identity_map(
        self, size: int, window: int, chunks: Any, units: Any, out: Any, /
    ) -> int: ...
    def rafs_chunk_table_apply(
        self, table: Any, length: int, blob_index: int, blob: Any, /
    ) -> int: ...
    def rafs_digest_array_apply(self, array: Any, length: int, blob: Any, /) -> int: ...
    def rafs_chunk_find(self, blob: Any, off: int, /) -> int: ...
    def rafs_units_present(
        self, blob: Any, flat_size: int, pages: Any, present: Any, /
    ) -> int: ...
    def rafs_decoder_new(self) -> Any: ...
    def rafs_decoder_free(self, decoder: Any, /) -> None: ...
    def rafs_unit_decode(
        self,
        decoder: Any,
        blob: Any,
        unit: int,
        compressed: Any,
        compressed_len: int,
        out: Any,
        out_len: int,
        /,
    ) -> int: ...
    def rafs_chunk_verify(self, blob: Any, chunk: int, data: Any, /) -> int: ...
    def rafs_units_decode(self, jobs: Any, n: int, threads: int, /) -> int: ...
    def rafs_decompress(
        self,
        decoder: Any,
        compressor: int,
        src: Any,
        src_len: int,
        dst: Any,
        dst_len: int,
        /,
    ) -> int: ...
    def rafs_compress(
        self,
        compressor: int,
        level: int,
        src: Any,
        src_len: int,
        dst: Any,
        dst_len: int,
        /,
    ) -> int: ...
    def rafs_compress_bound(self, compressor: int, length: int, /) -> int: ...
    def rafs_digest(self, digester: int, data: Any, length: int, out: Any, /) -> int: ...
    def rafs_crypto_begin(self) -> int: ...
    def rafs_crc32c(self, data: Any, length: int, /) -> int: ...
    def rafs_xts_encrypt(
        self, key: Any, iv: Any, src: Any, src_len: int, dst: Any, dst_len: int, /
    ) -> int: ...
    def rafs_xts_decrypt(
        self, key: Any, iv: Any, src: Any, src_len: int, dst: Any, dst_len: int, /
    ) -> int: ...
    def rafs_bootstrap_is_sound(self, tree: Any, /) -> int: ...

class _FFI(Protocol):
    NULL: Any
    CData: type
    CType: type
    error: type[Exception]

    def new(self, ctype: str | Any, init: Any = ..., /) -> Any: ...
    def new_handle(self, obj: Any, /) -> Any: ...
    def from_handle(self, handle: Any, /) -> Any: ...
    def from_buffer(self, ctype_or_buffer: Any, buffer: Any = ..., /) -> Any: ...
    def buffer(self, cdata: Any, size: int = ..., /) -> Any: ...
    def memmove(self, dest: Any, src: Any, n: int) -> None: ...
    def cast(self, ctype: str | Any, value: Any, /) -> Any: ...
    def string(self, cdata: Any, maxlen: int = ...) -> Any: ...
    def unpack(self, cdata: Any, length: int) -> Any: ...
    def sizeof(self, ctype: str | Any, /) -> int: ...
    def offsetof(self, ctype: str | Any, *fields: str | int) -> int: ...
    def addressof(self, cdata: Any, *fields: str | int) -> Any: ...
    def typeof(self, ctype: str | Any, /) -> Any: ...
    def gc(self, cdata: Any, destructor: Any, size: int = ...) -> Any: ...
    def release(self, cdata: Any, /) -> None: ...

ffi: _FFI
lib: _Lib
