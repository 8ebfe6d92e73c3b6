"""A registry in this process that keeps whatever it is given, and answers whatever it holds."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

from rangeserver import RangeServer

Answer = tuple[int, dict[str, str], bytes]
_MANIFEST = re.compile(r"/v2/(.+)/manifests/(.+)")
_BLOB = re.compile(r"/v2/(.+)/blobs/(sha256:.+)")
_RANGE = re.compile(r"bytes=(\d+)-(\d+)")


class MemoryRegistry:
    """Repositories share all.  ``blob`` and ``manifest`` are those of ``servers.Pusher``."""

    def __init__(self) -> None:
        self.host = ""
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, tuple[bytes, str]] = {}  # by tag and by digest; media type
        self.asked: list[str] = []
        self._uploads: dict[str, bytearray] = {}
        self._numbers = count()

    def blob(self, data: bytes) -> str:
        hexed = hashlib.sha256(data).hexdigest()
        self.blobs[f"sha256:{hexed}"] = data
        return hexed

    def manifest(self, tag: str, document: Mapping[str, Any]) -> str:
        return self.raw(tag, json.dumps(document).encode(), str(document.get("mediaType", "")))

    def raw(self, tag: str, body: bytes, media_type: str) -> str:
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        self.manifests[tag] = self.manifests[digest] = body, media_type
        return digest

    def document(self, tag: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.manifests[tag][0])
        return found

    def route(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        self.asked.append(f"{method} {path}")
        place = path.partition("?")[0]
        if named := _MANIFEST.fullmatch(place):
            if method == "PUT":
                self.raw(named[2], body, headers.get("Content-Type", ""))
                return 201, {}, b""
            return self._manifest(named[2])
        if "/blobs/uploads/" in place:
            return self._upload(method, place, body)
        if named := _BLOB.fullmatch(place):
            return self._blob(named[2], headers.get("Range", ""))
        return (200 if place == "/v2/" else 404), {}, b""

    def _manifest(self, name: str) -> Answer:
        if name not in self.manifests:
            return 404, {}, b""
        body, media_type = self.manifests[name]
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        return 200, {"Content-Type": media_type, "Docker-Content-Digest": digest}, body

    def _upload(self, method: str, place: str, body: bytes) -> Answer:
        if method == "POST":
            return 202, {"Location": f"{place}{next(self._numbers)}"}, b""
        kept = self._uploads.setdefault(place, bytearray())
        if method == "PATCH":
            kept += body
            return 202, {"Location": place, "Range": f"0-{len(kept) - 1}"}, b""
        del self._uploads[place]
        if method == "PUT":
            self.blob(bytes(kept) + body)
        return 201, {}, b""

    def _blob(self, digest: str, wanted: str) -> Answer:
        data = self.blobs.get(digest)
        if data is None:
            return 404, {}, b""
        if part := _RANGE.fullmatch(wanted):
            first, end = int(part[1]), min(int(part[2]) + 1, len(data))
            return 206, {"Content-Range": f"bytes {first}-{end - 1}/{len(data)}"}, data[first:end]
        return 200, {}, data


@contextlib.contextmanager
def memory_registry(directory: Path) -> Iterator[MemoryRegistry]:
    """``directory``: any empty one."""
    registry = MemoryRegistry()
    with RangeServer(directory, route=registry.route) as server:
        registry.host = server.host
        yield registry
