"""One repository of a registry as a store of images: to read from, and to push to."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

from nydus_fscache.errors import BackendError
from nydus_fscache.http.answer import StatusError
from nydus_fscache.http.ranges import ResumingRange
from nydus_fscache.registry.client import ACCEPT, RegistryClient
from nydus_fscache.registry.manifest import parse_document
from nydus_fscache.registry.media import INDEXES
from nydus_fscache.registry.push import LONGEST_S, Spooled, Upload
from nydus_fscache.registry.store import DOCUMENT_LIMIT, Document, document_of

_PAGES = 16  # of an answer to a question for referrers
_NEXT = re.compile(r"<[^<>\s?]*\?([!-;=?-~]{1,2048})>\s*;\s*rel=\"?next\"?")


class _Range:
    """``RegistryClient.open_blob`` as a stream that is closed when its reader is done."""

    def __init__(self, client: RegistryClient, repo: str, digest: str, size: int) -> None:
        self._opened = client.open_blob(repo, digest, 0, size, deadline=deadline())
        self._stream: ResumingRange = self._opened.__enter__()

    def readinto(self, buf: memoryview) -> int:
        return self._stream.readinto(buf)

    def close(self) -> None:
        self._stream.close()


class Repository:
    """``client`` is shared by the repositories of one registry, and closed by its owner.

    Thread-safe.
    """

    def __init__(self, client: RegistryClient, host: str, repo: str) -> None:
        self.client, self.host, self.repo = client, host, repo
        self._whole = False
        self._scratch: Path | None = None

    def close(self) -> None:
        pass

    def manifest(self, name: str) -> Document:
        accept = f"{ACCEPT}, */*"  # what else there is gets a clear refusal
        found = self.client.manifest(self.repo, name, deadline=deadline(), accept=accept)
        return document_of(found.body, found.media_type)

    def manifest_digest(self, name: str) -> str | None:
        """The digest that the tag points to now; None when there is no such tag."""
        return self.client.manifest_digest(self.repo, name, deadline=deadline())

    def has_blob(self, digest: str) -> int | None:
        return self.client.blob_size(self.repo, digest, deadline=deadline())

    def open_blob(self, digest: str, size: int) -> _Range:
        return _Range(self.client, self.repo, digest, size)

    def read_at(self, digest: str, off: int, length: int) -> bytes:
        data = bytearray(length)
        have = 0
        with (
            self.client.open_blob(self.repo, digest, off, length, deadline=deadline()) as stream,
            memoryview(data) as view,
        ):
            while have < length and (count := stream.readinto(view[have:])):
                have += count
        if have < length:
            raise BackendError(f"blob {digest}: {have} of {length} bytes came")
        return bytes(data)

    def referrers(self, digest: str, artifact_type: str = "") -> list[dict[str, Any]] | None:
        """The entries of what refers to ``digest``; None without the API (distribution 1.1).

        ``artifact_type``: a registry may leave out others, or not.
        """
        words = f"?artifactType={quote(artifact_type, safe='')}" if artifact_type else ""
        place, found = f"referrers/{digest}{words}", []
        for _ in range(_PAGES):
            with self.client.request(
                "GET", self.repo, place, deadline=deadline(), headers={"Accept": INDEXES[0]}
            ) as answer:
                if answer.status in (400, 404, 405) or (
                    answer.status == 200
                    and not answer.headers.get("content-type", "").startswith(INDEXES[0])
                ):
                    return None
                if answer.status != 200:
                    raise StatusError(f"referrers of {digest}", answer)
                entries = parse_document(answer.read(DOCUMENT_LIMIT)).get("manifests")
                link = _NEXT.search(answer.headers.get("link", ""))
            entries = entries if isinstance(entries, list) else []
            found += [entry for entry in entries if isinstance(entry, dict)]
            # Only the query is taken: the place stays what was asked for.
            if link is None:
                break
            place = f"referrers/{digest}?{link[1]}"
        return found

    def writer(self) -> Upload | Spooled:
        if self._whole:
            return Spooled(self.client, self.repo, self._scratch)
        return Upload(self.client, self.repo)

    def push_whole(self, scratch: Path | None) -> None:
        """From now on blobs go in one piece, out of ``scratch`` (None: where temporary files are):
        the registry takes no parts."""
        self._whole, self._scratch = True, scratch

    def mount(self, digest: str, source: str) -> bool:
        """Take the blob over from repository ``source`` of this registry, where it allows that."""
        try:
            return self.client.mount_blob(self.repo, digest, source, deadline=deadline())
        except BackendError as e:
            if e.status is not None or "token server" in str(e):
                return False  # not allowed to read there: it is uploaded instead
            raise

    def put_manifest(self, name: str, document: Document) -> None:
        if ":" not in name and self.manifest_digest(name) == document.digest:
            return
        self.client.put_manifest(
            self.repo, name, document.body, document.media_type, deadline=deadline()
        )


def deadline() -> float:
    """Of one transfer: silence ends it, not its length."""
    return time.monotonic() + LONGEST_S
