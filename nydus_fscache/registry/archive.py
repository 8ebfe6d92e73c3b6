"""Images in one file: the tar of an OCI layout, and that of ``docker save``.

Read in any compression; what is compressed becomes an unnamed temporary file
once.  Written the same bytes for the same image: entries in a fixed order,
without owners and times.
"""

from __future__ import annotations

import bz2
import hashlib
import io
import json
import lzma
import os
import posixpath
import tarfile
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Protocol

from nydus_fscache.errors import BackendError, BadImage
from nydus_fscache.registry.inflate import ZSTD_MAGIC, Inflate
from nydus_fscache.registry.layout import VERSION, FileStream, Layout, choose_entry
from nydus_fscache.registry.leftovers import NewFile
from nydus_fscache.registry.manifest import config_of, descriptor, list_of
from nydus_fscache.registry.media import (
    DOCKER_CONFIG,
    DOCKER_LAYER,
    DOCKER_LAYER_GZIP,
    DOCKER_MANIFEST,
    IMAGE_NAME,
    INDEXES,
    OCI_INDEX,
    REF_NAME,
)
from nydus_fscache.registry.store import (
    DOCUMENT_LIMIT,
    PIECE,
    BlobWriter,
    Document,
    document_of,
)

_GZIP = b"\x1f\x8b"
_LINKS = 8  # symbolic links behind each other that docker save may make


class Archive:
    """``path``: a file.  Temporary data go to ``scratch``.  Thread-safe, to read only."""

    def __init__(self, path: Path, scratch: Path | None = None) -> None:
        self.path = path
        self._file = _plain(path, scratch)
        try:
            self._places = _places(self._file, path)
        except BaseException:
            self._file.close()
            raise
        self._made: dict[str, tuple[int, int]] = {}  # blobs of docker save, by digest
        self._docker: Document | None = None
        if "index.json" not in self._places:
            self._docker = self._from_docker()

    def close(self) -> None:
        self._file.close()

    def manifest(self, name: str) -> Document:
        if self._docker is not None:
            if name.startswith("sha256:") and name != self._docker.digest:
                raise BackendError(f"{self.path} has no manifest {name}")
            return self._docker
        if name.startswith("sha256:"):
            return document_of(self._content(self._place(name)), "", digest=name)
        index = document_of(self._content(self._places["index.json"]), OCI_INDEX).json
        entry = choose_entry(index, name, f"incorrect tarball format: {self.path}")
        chosen = descriptor(entry)
        body = self._content(self._place(chosen.digest))
        return document_of(body, chosen.media_type, digest=chosen.digest)

    def put_manifest(self, name: str, document: Document) -> None:
        raise BackendError(f"{self.path} is only read")

    def writer(self) -> BlobWriter:
        raise BackendError(f"{self.path} is only read")

    def has_blob(self, digest: str) -> int | None:
        try:
            return self._place(digest)[1]
        except BackendError:
            return None

    def open_blob(self, digest: str, size: int) -> FileStream:
        off, there = self._place(digest)
        if there < size:
            raise BackendError(f"{self.path}: blob {digest} is cut short")
        # A descriptor of its own would share the offset, so the file is opened anew.
        file = open(f"/proc/self/fd/{self._file.fileno()}", "rb")  # noqa: SIM115
        file.seek(off)
        return FileStream(file, size)

    def read_at(self, digest: str, off: int, length: int) -> bytes:
        start, size = self._place(digest)
        data = os.pread(self._file.fileno(), min(length, max(0, size - off)), start + off)
        if len(data) != length:
            raise BackendError(f"{self.path}: blob {digest} is cut short")
        return data

    def _place(self, digest: str) -> tuple[int, int]:
        place = self._made.get(digest) or self._places.get(
            f"blobs/sha256/{digest.removeprefix('sha256:')}"
        )
        if place is None:
            raise BackendError(f"{self.path} has no blob {digest}")
        return place

    def _content(self, place: tuple[int, int]) -> bytes:
        off, size = place
        if size > DOCUMENT_LIMIT:
            raise BadImage(f"{self.path}: a document of {size} bytes")
        return os.pread(self._file.fileno(), size, off)

    def _from_docker(self) -> Document:
        """A manifest for what ``docker save`` describes; its blobs get their digests here."""
        place = self._places.get("manifest.json")
        if place is None:
            raise BadImage(
                f"incorrect tarball format: {self.path} has neither index.json nor manifest.json",
                hint="docker save, skopeo copy … oci-archive:FILE, or ctr image export make it",
            )
        try:
            images = json.loads(self._content(place))
            (image,) = images
            names = [str(image["Config"]), *map(str, image["Layers"])]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise BadImage(
                f"incorrect tarball format: {self.path} holds not exactly one image",
                hint="docker save exactly one image by its name",
            ) from None
        config, *layers = (self._add(name) for name in names)
        document = {
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST,
            "config": {**config, "mediaType": DOCKER_CONFIG},
            "layers": layers,
        }
        return Document(json.dumps(document, indent=2).encode(), DOCKER_MANIFEST)

    def _add(self, name: str) -> dict[str, Any]:
        place = self._places.get(posixpath.normpath(name))
        if place is None:
            raise BadImage(f"{self.path}: manifest.json names {name}, which is not there")
        off, size = place
        sha256 = hashlib.sha256()
        first = b""
        for at in range(off, off + size, PIECE):
            data = os.pread(self._file.fileno(), min(PIECE, off + size - at), at)
            first = first or data[:2]
            sha256.update(data)
        digest = f"sha256:{sha256.hexdigest()}"
        self._made[digest] = place
        kind = DOCKER_LAYER_GZIP if first == _GZIP else DOCKER_LAYER
        return {"mediaType": kind, "digest": digest, "size": size}


def _plain(path: Path, scratch: Path | None) -> IO[bytes]:
    """The tar, decompressed when it has to be."""
    file = path.open("rb")
    first = file.read(6)
    file.seek(0)
    inflate = _inflate(first)
    if inflate is None:
        return file
    out = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115 - the archive closes it
    try:
        with file:
            while piece := file.read(PIECE):
                for plain in inflate.feed(piece):
                    out.write(plain)
            inflate.end()
        out.seek(0)
    except (zlib.error, lzma.LZMAError, OSError, EOFError) as e:
        out.close()
        if isinstance(e, OSError) and e.errno is not None:
            raise
        raise BadImage(f"{path}: the compressed archive is damaged: {e}") from e
    except BaseException:
        out.close()
        raise
    return out


class _Inflater(Protocol):
    def feed(self, data: bytes) -> Iterable[bytes]: ...

    def end(self) -> None: ...


class _Other:
    """bzip2 and xz."""

    def __init__(self, decompressor: bz2.BZ2Decompressor | lzma.LZMADecompressor) -> None:
        self._decompressor = decompressor

    def feed(self, data: bytes) -> Iterator[bytes]:
        if not self._decompressor.eof:
            yield self._decompressor.decompress(data)

    def end(self) -> None:
        if not self._decompressor.eof:
            raise EOFError("it is cut short")


def _inflate(first: bytes) -> _Inflater | None:
    if first.startswith((_GZIP, ZSTD_MAGIC)):
        return Inflate()
    if first.startswith(b"BZh"):
        return _Other(bz2.BZ2Decompressor())
    if first.startswith(b"\xfd7zXZ"):
        return _Other(lzma.LZMADecompressor())
    return None


def _places(file: IO[bytes], path: Path) -> dict[str, tuple[int, int]]:
    """Offset and size of each regular file, by its name; links are followed."""
    places: dict[str, tuple[int, int]] = {}
    links: dict[str, str] = {}
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for info in tar:
                name = posixpath.normpath(info.name)
                if info.isreg():
                    places[name] = info.offset_data, info.size
                elif info.issym():
                    there = posixpath.join(posixpath.dirname(name), info.linkname)
                    links[name] = posixpath.normpath(there)
                elif info.islnk():
                    links[name] = posixpath.normpath(info.linkname)
                tar.members.clear()  # type: ignore[attr-defined] # or all headers stay in memory
    except tarfile.TarError as e:
        raise BadImage(f"incorrect tarball format: {path}: {e}") from e
    size = os.fstat(file.fileno()).st_size
    for name, (off, length) in places.items():
        if off + length > size:
            raise BadImage(f"{path}: the archive ends inside {name}")
    for name, link in links.items():
        there, hops = link, 0
        while there in links and hops < _LINKS:
            there, hops = links[there], hops + 1
        if there in places:
            places[name] = places[there]
    return places


def pack(layout: Layout, name: str, document: Document, target: Path) -> None:
    """Write the image ``document`` of ``layout``, and all that it needs, to the file ``target``.

    The blobs are taken out of the layout one by one, so that no two copies lie there.
    """
    tag = name.rpartition(":")[2] if ":" in name.rpartition("/")[2] else ""
    notes = {IMAGE_NAME: name, **({REF_NAME: tag} if tag and "@" not in name else {})}
    index = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [{**document.descriptor, "annotations": notes}],
    }
    images = [
        {
            "Config": _blob_path(config_of(image).digest),
            "RepoTags": [name],
            "Layers": [_blob_path(descriptor(one).digest) for one in list_of(image, "layers")],
        }
        for image in [_one_image(layout, document)]
        if image is not None
    ]
    with NewFile(target.parent) as temporary:
        made = temporary.path
        with (
            made.open("xb") as out,
            tarfile.open(fileobj=out, mode="w|", format=tarfile.GNU_FORMAT, bufsize=PIECE) as tar,
        ):
            for folder in ("blobs", "blobs/sha256"):
                info = tarfile.TarInfo(folder)
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(info)
            for file in sorted((layout.path / "blobs" / "sha256").iterdir()):
                info = tarfile.TarInfo(f"blobs/sha256/{file.name}")
                info.size, info.mode = file.stat().st_size, 0o444
                with file.open("rb") as blob:
                    tar.addfile(info, blob)
                file.unlink()
            for entry, content in (
                ("index.json", json.dumps(index, separators=(",", ":")).encode()),
                ("manifest.json", json.dumps(images, separators=(",", ":")).encode()),
                ("oci-layout", VERSION),
            ):
                info = tarfile.TarInfo(entry)
                info.size, info.mode = len(content), 0o444
                tar.addfile(info, _bytes_file(content))
        with made.open("rb+") as done:
            os.fsync(done.fileno())
        made.chmod(0o644)
        made.replace(target)


def _bytes_file(content: bytes) -> IO[bytes]:
    return io.BytesIO(content)


def _one_image(layout: Layout, document: Document) -> dict[str, Any] | None:
    """The manifest that ``docker load`` would take: the only one, or the first of an index."""
    if document.media_type not in INDEXES:
        return document.json
    for entry in list_of(document.json, "manifests"):
        digest = descriptor(entry).digest
        if layout.has_blob(digest) is not None:
            return layout.manifest(digest).json
    return None


def _blob_path(digest: str) -> str:
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


