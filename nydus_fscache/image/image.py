"""An image that is bound: its validated bootstrap, its backend, and the chunk maps of its blobs.

Nothing of the kernel is touched here.  Everything that an image says is checked
before the image exists: the whole bootstrap, the metadata of every blob, and
that each blob is there and as long as its table says.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import rafs_v6
from nydus_fscache.backend.base import Backend
from nydus_fscache.core.units import unit_columns
from nydus_fscache.errors import BackendError, BadImage, DaemonError, FscacheError, KernelRefused
from nydus_fscache.image.blob_id import checked_blob_id
from nydus_fscache.image.blob_meta import MetaReader
from nydus_fscache.registry.reference import canonical_host
from rafs_v6 import ChunkMap, Digester
from rafs_v6._codec import lib
from rafs_v6.format.erofs import Cipher
from rafs_v6.sha256 import file_sha256, hasher, sha256
from rafs_v6.validate import validate
from rafs_v6.values import dataclass

_PARALLEL_LOADS = 8
_CHUNKS_FREE = 65536  # of an image, whatever it weighs: 11 MiB of memory
_STORED_PER_CHUNK = 32  # bytes: an inode and its place in a directory, or the data of a chunk
_FLAT_FREE = 64 << 30  # bytes of an image that are believed: page maps of 2 MiB
_FLAT_PER_CHUNK_BYTE = 64  # beyond that: an image may use few of a blob's chunks


@dataclass(frozen=True, slots=True)
class ImageBlob:
    """A blob of the device table, in its order.  ``identity``: hex, of all that decoding needs."""

    info: rafs_v6.BlobInfo
    chunks: ChunkMap
    identity: str


@dataclass(frozen=True, slots=True)
class Image:
    """``key``: the same bootstrap from the same backend is the same image."""

    key: str
    digest: str  # sha256 of the bootstrap, hex
    path: Path
    size: int
    backend: Backend
    backend_config: Mapping[str, Any]
    blobs: tuple[ImageBlob, ...]


_RECORD = 48  # bytes of a chunk, of what tells blobs apart
_SECRETS = ("auth", "registry_token")  # of a registry; those of stores change with their accounts


def image_key(digest: str, backend_config: Mapping[str, Any]) -> str:
    """Names an image and where its blobs come from, whoever may fetch them."""
    places = {
        name: {k: v for k, v in value.items() if k not in _SECRETS}
        if isinstance(value, Mapping)
        else value
        for name, value in backend_config.items()
    }
    config = json.dumps(places, sort_keys=True)
    return sha256(f"{digest} {config}".encode()).hexdigest()


def auth_of(backend_config: Mapping[str, Any]) -> str:
    """The credentials in a registry's configuration, or empty."""
    registry = backend_config.get("registry")
    return str(registry.get("auth") or "") if isinstance(registry, dict) else ""


def renew_auth(backend_config: Mapping[str, Any], host: str, auth: str) -> bool:
    """Change the credentials in a configuration, if it is one of this registry."""
    registry = backend_config.get("registry")
    if not isinstance(registry, dict):
        return False
    if canonical_host(str(registry.get("host"))) != canonical_host(host):
        return False
    registry.pop("registry_token", None)
    registry["auth"] = auth
    return True


def load_image(
    path: Path,
    digest: str,
    backend: Backend,
    backend_config: Mapping[str, Any],
    transport: str,
    meta_dir: Path,
    *,
    may_ask: bool = True,
    verified: bool = False,
) -> Image:
    """Validate the bootstrap at ``path`` (private, immutable) and load its blobs' chunk maps.

    ``may_ask``: the backend, for what is not cached.  ``verified``: the caller knows that the file
    has this digest.
    Raises ``BadImage``, ``BackendError``, or ``KernelRefused`` when the format allows
    the image but the kernel would not.
    """
    try:
        if not verified:
            _check_digest(path, digest)
        bootstrap = rafs_v6.Bootstrap.from_file(path)
    except rafs_v6.ImageError as e:
        raise _bad_bootstrap(e) from e
    for info in bootstrap.blobs:
        checked_blob_id(info.blob_id)
        _begin_crypto(info)
    _check_counts(bootstrap.blobs, path.stat().st_size)

    def load(info: rafs_v6.BlobInfo) -> ImageBlob:
        return _load_blob(info, bootstrap, MetaReader(backend, meta_dir, may_ask=may_ask))

    pool = ThreadPoolExecutor(_PARALLEL_LOADS)
    loads: list[Future[ImageBlob]] = []
    try:  # the backend is far: what is asked of it is under way while the bootstrap is validated
        loads += [pool.submit(load, info) for info in bootstrap.blobs]
        _validate(bootstrap)
        refusal = bootstrap.kernel_refusal(transport)
        if refusal:
            raise KernelRefused(f"the kernel cannot mount this image: {refusal}", hint="convert it")
        blobs: tuple[ImageBlob, ...] = ()
        while loads:  # no name for one of them: its error would lead back to it, and the mapped
            blobs += (loads.pop(0).result(),)  # bootstrap would stay open, "in use"
        _check_sizes(blobs)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        loads.clear()
    return Image(
        key=image_key(digest, backend_config),
        digest=digest,
        path=path,
        size=path.stat().st_size,
        backend=backend,
        backend_config=backend_config,
        blobs=blobs,
    )


def _begin_crypto(info: rafs_v6.BlobInfo) -> None:
    """What verifies and deciphers is here before the first read, which must not fail for want of a
    descriptor to load it with."""
    needs = info.digester is Digester.SHA256 or info.cipher is not Cipher.NONE
    if needs and lib.rafs_crypto_begin():
        raise DaemonError(
            "OpenSSL cannot be loaded", hint="install libcrypto, or raise LimitNOFILE and MemoryMax"
        )


def _check_digest(path: Path, digest: str) -> None:
    if file_sha256(path) != digest:
        raise BadImage(f"{path} was changed", hint="remove it, and mount the image again")


def _validate(bootstrap: rafs_v6.Bootstrap) -> None:
    try:
        validate(bootstrap)
    except rafs_v6.ImageError as e:
        raise _bad_bootstrap(e) from e


def _bad_bootstrap(error: rafs_v6.ImageError) -> BadImage:
    return BadImage(
        f"bad bootstrap: {error}", hint="build or pull the image again; nothing was mounted"
    )


def _check_counts(infos: Iterable[rafs_v6.BlobInfo], bootstrap_size: int) -> None:
    """A chunk takes some 170 bytes of memory, so it must have cost its author some too: stored
    data, which are looked at before a map is decoded, or a file in the bootstrap.  A table of many
    equal chunks compresses to nearly nothing."""
    data: dict[str, int] = {}
    unpaid = 0
    for info in infos:
        stored = 0 if info.blob_id in data else info.data_size
        data[info.blob_id] = stored
        if not info.is_tarfs:
            unpaid += max(0, info.chunk_count - stored // _STORED_PER_CHUNK)
    most = _CHUNKS_FREE + bootstrap_size // _STORED_PER_CHUNK
    if unpaid > most:
        raise BadImage(
            f"the blobs are said to have {unpaid} chunks more than their data pay for, of {most}",
            hint="build or pull the image again; nothing was mounted",
        )


def _check_sizes(blobs: Iterable[ImageBlob]) -> None:
    """Memory for a blob goes by its flat size, so that must go by the chunks that it has."""
    stated = sum(blob.chunks.flat_size for blob in blobs)
    if stated <= _FLAT_FREE:
        return
    held = sum(sum(unit_columns(b.chunks.blob, b.chunks.nunits)[2]) for b in blobs)
    if stated > _FLAT_FREE + _FLAT_PER_CHUNK_BYTE * held:
        raise BadImage(
            f"the blobs are said to hold {stated} bytes, and their chunks hold {held}",
            hint="build or pull the image again; nothing was mounted",
        )


class _Refused(Exception):
    """``error``: of metadata that a repaired blob would not cause."""

    def __init__(self, error: FscacheError) -> None:
        super().__init__(str(error))
        self.error = error


def _load_blob(
    info: rafs_v6.BlobInfo, bootstrap: rafs_v6.Bootstrap, reader: MetaReader
) -> ImageBlob:
    """Metadata that is refused is not kept, and what was kept is asked for once more: the blob may
    have been uploaded again since."""
    try:
        return _checked_blob(info, bootstrap, reader)
    except _Refused as e:
        if not reader.forget(info.blob_id):
            raise e.error from e
    try:
        return _checked_blob(info, bootstrap, reader)
    except _Refused as e:
        reader.forget(info.blob_id)
        raise e.error from e


def _checked_blob(
    info: rafs_v6.BlobInfo, bootstrap: rafs_v6.Bootstrap, reader: MetaReader
) -> ImageBlob:
    def read_at(blob_id: str, off: int, length: int) -> bytes:
        """The answer to a range says how long the blob is: to ask for that would be one more
        round trip.  It is looked at before anything is decoded."""
        try:
            data = reader.read_at(blob_id, off, length)
        except BackendError as e:
            if not e.retryable:
                _check_length(info, reader)  # says it better
            raise
        _check_length(info, reader)
        return data

    try:
        chunks = ChunkMap.load(info, read_at, bootstrap, blob_size=reader.size)
        _check_length(info, reader)
    except rafs_v6.ImageError as e:
        error = BadImage(
            f"blob {info.blob_id}: {e}",
            hint="the bootstrap and the blob do not belong together, or one is damaged",
        )
        raise _Refused(error) from e
    return ImageBlob(info, chunks, _identity(info, chunks))


def _check_length(info: rafs_v6.BlobInfo, reader: MetaReader) -> None:
    size = reader.size(info.blob_id)
    # a tar is its own flat file, and has no chunks that are stored and could be counted
    stated = max(info.data_size, info.uncompressed_size if info.is_tarfs else 0)
    if size < stated:
        cut = BackendError(
            f"blob {info.blob_id}: {size} bytes in the backend, {stated} by the blob table",
            hint="the blob was cut or is another one: upload it again",
        )
        raise _Refused(cut)


def _identity(info: rafs_v6.BlobInfo, chunks: ChunkMap) -> str:
    """What must be equal for two images to share the cached data of a blob."""
    h = hasher(chunks.nchunks * _RECORD)
    h.update(f"{info.blob_id} {info.compressor} {info.digester} {chunks.flat_size} ".encode())
    for part in chunks.decoded_parts():
        h.update(part)
    return h.hexdigest()
