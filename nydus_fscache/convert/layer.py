"""One layer: pulled, verified, built into a blob and pushed, all at once and in one pass.

The blob appears only when the layer's digest was right and the builder ended well.
The bootstrap inside the blob is kept for merging, on disk.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from nydus_fscache.convert.builder import Builder
from nydus_fscache.convert.errors import ConvertError, Stopped
from nydus_fscache.convert.journal import Blob, Journal
from nydus_fscache.convert.move import Attempts, whole_if_refused
from nydus_fscache.convert.progress import Progress, Task
from nydus_fscache.errors import BadImage
from nydus_fscache.registry.inflate import GZIP_MAGIC, Inflate
from nydus_fscache.registry.manifest import Descriptor
from nydus_fscache.registry.store import PIECE, BlobStore, BlobStream, check_blob
from rafs_v6.errors import RafsError
from rafs_v6.format.toc import TAR_HEADER, find_bootstrap, parse_toc, read_part, read_toc
from rafs_v6.values import dataclass

_BLOCK = 4096
_TAIL = 1 << 20  # of a blob, kept in memory: its bootstrap is in there, nearly always


@dataclass(frozen=True, slots=True)
class PackOptions:
    """All that shapes a blob but the layer itself.  ``dict_digest``: of the dictionary's bytes."""

    fs_version: str = "6"
    compressor: str = "zstd"
    chunk_size: str = "0x100000"
    batch_size: str = "0"
    align: bool = False
    oci_ref: bool = False
    chunk_dict: Path | None = None
    dict_digest: str = ""
    prefetch: bytes = b"/"

    def words(self) -> list[str]:
        """Of ``nydus-image create``."""
        if self.oci_ref:
            return ["--type", "targz-ref", "--blob-inline-meta", "--features", "blob-toc"]
        words = [
            "--prefetch-policy", "fs", "--whiteout-spec", "none", "--fs-version", self.fs_version,
            "--type", "tar-rafs", "--blob-inline-meta",
        ]  # fmt: skip
        if self.fs_version != "5":
            words += ["--features", "blob-toc"]
        if self.chunk_dict is not None:
            words += ["--chunk-dict", f"bootstrap={self.chunk_dict}"]
        if self.compressor:
            words += ["--compressor", self.compressor]
        if self.align:
            words.append("--aligned-chunk")
        if self.chunk_size:
            words += ["--chunk-size", self.chunk_size]
        if self.batched:
            words += ["--batch-size", self.batch_size]
        return words

    @property
    def batched(self) -> bool:
        return self.batch_size not in ("", "0", "0x0")

    def key(self, builder: str) -> str:
        """Equal keys and equal layers make equal blobs."""
        words = [word for word in self.words() if not word.startswith("bootstrap=")]
        text = "\0".join([builder, *words, self.dict_digest])
        shaping = text.encode("utf-8", "surrogateescape")  # whatever was typed
        return hashlib.sha256(shaping + b"\0" + self.prefetch).hexdigest()


@dataclass(frozen=True, slots=True)
class Packed:
    """``boot`` and ``meta``: files; ``cached``: it was not built by this run."""

    source: Descriptor
    blob: Blob
    boot: Path
    meta: Path | None
    toc_digest: str
    cached: bool


@dataclass(slots=True)
class Packer:
    """Thread-safe.  ``find``: a blob of this layer from elsewhere, present in the target."""

    source: BlobStore
    target: BlobStore
    builder: Builder
    options: PackOptions
    work: Path
    journal: Journal
    find: Callable[[Descriptor], Blob | None]
    stop: threading.Event
    progress: Progress
    attempts: Attempts
    builder_version: str = ""

    def pack(self, layer: Descriptor, number: int) -> Packed:
        if self.stop.is_set():
            raise Stopped("stopped")
        task = self.progress.begin(f"layer {layer.hex[:12]}", layer.size)
        key = f"{layer.digest} {self.options.key(self.builder_version)}"
        directory = self.work / f"nydus-converter-{number}"
        directory.mkdir()
        known = self.journal.find(key)
        if known is not None and self.target.has_blob(known.digest) != known.size:
            known = None
        known = known or self.find(layer)
        if known is not None:
            found = self._parts(layer, known, b"", directory, cached=True)
            task.end("cached")
            return found
        built = whole_if_refused(self.target, self.work)(self._build)
        blob, tail = self.attempts.run(lambda: built(layer, key, directory, task), self.stop)
        made = self._parts(layer, blob, tail, directory, cached=False)
        task.end("converted")
        return made

    def _build(
        self, layer: Descriptor, key: str, directory: Path, task: Task
    ) -> tuple[Blob, bytes]:
        writer = self.target.writer()
        sha256 = hashlib.sha256()
        size, tail = 0, bytearray()

        def take(data: memoryview) -> None:
            nonlocal size
            sha256.update(data)
            writer.write(data)
            tail.extend(data)
            if len(tail) > 2 * _TAIL:
                del tail[:-_TAIL]
            size += len(data)

        try:
            stream = self.source.open_blob(layer.digest, layer.size)
            try:
                pieces = _pieces(stream, layer, task, self.stop, self.options.oci_ref)
                self.builder.pack(self.options.words(), directory, pieces, take)
            finally:
                stream.close()
            blob = Blob(f"sha256:{sha256.hexdigest()}", size)
            # Before the blob appears: a run that is killed in between must not build it again.
            self.journal.add(key, blob)
            writer.finish(blob.digest)
        except ConvertError as e:
            if isinstance(e, Stopped):
                raise
            raise ConvertError(f"layer {layer.digest}: {e}", hint=e.hint) from e
        except BadImage as e:
            raise BadImage(f"layer {layer.digest}: {e}", hint=e.hint) from e
        finally:
            writer.abort()
        return blob, bytes(tail)

    def _parts(
        self, layer: Descriptor, blob: Blob, tail: bytes, directory: Path, *, cached: bool
    ) -> Packed:
        """The bootstrap and the metadata that are inside the blob, as files."""
        begin = blob.size - len(tail)

        def read_at(_: str, off: int, length: int) -> bytes:
            if off >= begin:
                return tail[off - begin : off - begin + length]
            return self.target.read_at(blob.digest, off, length)

        hexed = blob.digest.removeprefix("sha256:")
        name = layer.hex if self.options.oci_ref else hexed
        boot, meta, toc_digest = directory / name, None, ""
        try:
            boot.write_bytes(find_bootstrap(read_at, hexed, blob.size))
            if self.options.fs_version != "5":
                area = read_toc(read_at, hexed, blob.size, 0, b"")
                toc_digest = hashlib.sha256(area[:-TAR_HEADER]).hexdigest()
                parts = parse_toc(area)
                if "blob.meta" in parts and "blob.meta.header" in parts:
                    plain = read_part(read_at, hexed, parts["blob.meta"], blob.size)
                    header = read_part(read_at, hexed, parts["blob.meta.header"], blob.size)
                    # By the layer's name, of a zran blob as well.
                    meta = directory / f"{hexed}.blob.meta"
                    meta.write_bytes(plain + bytes(-len(plain) % _BLOCK) + header)
        except RafsError as e:
            raise BadImage(f"blob {blob.digest} of layer {layer.digest}: {e}") from e
        return Packed(layer, blob, boot, meta, toc_digest, cached)


def _pieces(
    stream: BlobStream, layer: Descriptor, task: Task, stop: threading.Event, stored: bool
) -> Iterator[bytes]:
    """The tar of the layer, or its bytes as they are ``stored``; verified before the last ends."""
    sha256, inflate = hashlib.sha256(), Inflate()
    size = 0
    buf = memoryview(bytearray(PIECE))
    while count := stream.readinto(buf):
        if stop.is_set():
            raise Stopped("stopped")
        data = bytes(buf[:count])
        if stored and not size and not data.startswith(GZIP_MAGIC):
            raise BadImage(
                "it is not compressed by gzip, which --oci-ref refers to",
                hint="convert without --oci-ref, or recompress the image",
            )
        sha256.update(data)
        size += count
        task.advance(count)
        if stored:
            yield data
        else:
            yield from inflate.feed(data)
    check_blob(layer, f"sha256:{sha256.hexdigest()}", size)
    if not stored:
        inflate.end()


def once(layers: Sequence[Descriptor]) -> list[Descriptor]:
    """Each layer once, in order."""
    return list({layer.digest: layer for layer in layers}.values())
