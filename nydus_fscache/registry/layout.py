"""An OCI image layout in a directory: what ``umoci``, ``skopeo oci:`` and ``crane`` read and write.

A blob has a temporary name until it is whole.  Names in index.json follow
containerd (``io.containerd.image.name``) and the specification (a tag).
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from pathlib import Path
from typing import IO, Any

from nydus_fscache.errors import BackendError, BadImage
from nydus_fscache.files import replace_file
from nydus_fscache.registry.leftovers import NewFile
from nydus_fscache.registry.manifest import descriptor, list_of
from nydus_fscache.registry.media import IMAGE_NAME, OCI_INDEX, REF_NAME
from nydus_fscache.registry.store import DOCUMENT_LIMIT, Document, document_of

VERSION = b'{"imageLayoutVersion":"1.0.0"}'


class FileStream:
    """``size`` bytes of a file from where it stands; owns the file."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._left = file, size

    def readinto(self, buf: memoryview) -> int:
        if not self._left:
            return 0
        data = self._file.read(min(len(buf), self._left))
        if not data:
            raise BackendError(f"the file ends {self._left} bytes too early")
        buf[: len(data)] = data
        self._left -= len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()


class FileWriter:
    """A blob that gets the name ``directory/HEX`` when it is finished."""

    def __init__(self, directory: Path, mode: int = 0o644) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory, self._mode = directory, mode
        self._temporary = NewFile(directory)
        self._file = self._temporary.path.open("xb")

    def write(self, data: bytes | memoryview) -> None:
        self._file.write(data)

    def finish(self, digest: str) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        os.fchmod(self._file.fileno(), self._mode)
        self._file.close()
        self._temporary.path.replace(self._directory / digest.removeprefix("sha256:"))
        self._temporary.remove()

    def abort(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self._temporary.remove()


class Layout:
    """Made when it is written to.  ``name``: the full reference that tags are noted under."""

    def __init__(self, path: Path, *, name: str = "") -> None:
        self.path = path
        self._name = name
        self._blobs = path / "blobs" / "sha256"
        self._lock = threading.Lock()

    def close(self) -> None:
        pass

    def _file(self, digest: str) -> Path:
        return self._blobs / digest.removeprefix("sha256:")

    def has_blob(self, digest: str) -> int | None:
        try:
            return self._file(digest).stat().st_size
        except FileNotFoundError:
            return None

    def open_blob(self, digest: str, size: int) -> FileStream:
        return FileStream(self._open(digest), size)

    def read_at(self, digest: str, off: int, length: int) -> bytes:
        with self._open(digest) as file:
            data = os.pread(file.fileno(), length, off)
        if len(data) != length:
            raise BackendError(f"{self.path}: blob {digest} is cut short")
        return data

    def _open(self, digest: str) -> IO[bytes]:
        try:
            return self._file(digest).open("rb")
        except FileNotFoundError:
            raise BackendError(f"{self.path} has no blob {digest}") from None

    def writer(self) -> FileWriter:
        return FileWriter(self._blobs)

    def manifest(self, name: str) -> Document:
        """A digest, a tag or a full name; the only image when there is but one."""
        if name.startswith("sha256:"):
            size = self.has_blob(name)
            if size is None or size > DOCUMENT_LIMIT:
                raise BackendError(f"{self.path} has no manifest {name}")
            return document_of(self.read_at(name, 0, size), "", digest=name)
        entry = choose_entry(self.index(), name, str(self.path))
        place = descriptor(entry)
        size = self.has_blob(place.digest)
        if size is None or size > DOCUMENT_LIMIT:
            raise BadImage(f"{self.path}: the manifest {place.digest} of index.json is not there")
        body = self.read_at(place.digest, 0, size)
        return document_of(body, place.media_type, digest=place.digest)

    def index(self) -> dict[str, Any]:
        try:
            body = (self.path / "index.json").read_bytes()
        except FileNotFoundError:
            raise BadImage(f"{self.path} is not an OCI layout: it has no index.json") from None
        return document_of(body, OCI_INDEX).json

    def put_manifest(self, name: str, document: Document) -> None:
        with self._lock:
            writer = self.writer()
            try:
                writer.write(document.body)
                writer.finish(document.digest)
            finally:
                writer.abort()
            if not name.startswith("sha256:"):
                self._note(name, document)

    def _note(self, tag: str, document: Document) -> None:
        path = self.path / "index.json"
        index: dict[str, Any] = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}
        if path.exists():
            index = self.index()
        notes = {REF_NAME: tag}
        if self._name:
            notes[IMAGE_NAME] = self._name
        there = list_of({"manifests": [], **index}, "manifests")
        others = [e for e in there if not _is_named(e, tag, self._name)]
        index["manifests"] = [*others, {**document.descriptor, "annotations": notes}]
        replace_file(self.path / "oci-layout", VERSION)
        replace_file(path, json.dumps(index, separators=(",", ":")).encode())
        for file in (self.path / "oci-layout", path):
            file.chmod(0o644)


def choose_entry(index: dict[str, Any], name: str, where: str) -> dict[str, Any]:
    entries = list_of({"manifests": [], **index}, "manifests")
    fitting = [e for e in entries if name and _is_named(e, name, name)]
    if len(fitting) == 1:
        return fitting[0]
    if len(entries) != 1:
        names = sorted(str((e.get("annotations") or {}).get(REF_NAME, "?")) for e in entries)
        raise BadImage(
            f"{where} holds {len(entries)} images, none of them called {name!r}"
            if entries else f"{where} holds no image",
            hint=f"name one: {', '.join(names)}" if entries else None,
        )  # fmt: skip
    return entries[0]


def _is_named(entry: dict[str, Any], tag: str, name: str) -> bool:
    notes = entry.get("annotations")
    if not isinstance(notes, dict):
        return False
    if notes.get(IMAGE_NAME) and name:
        return bool(notes[IMAGE_NAME] == name) or name == tag == notes.get(REF_NAME)
    return bool(notes.get(REF_NAME) == tag)
