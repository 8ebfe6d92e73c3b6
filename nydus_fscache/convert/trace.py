"""Access traces as artifacts beside their image: one node's start makes the next one's fast.

A trace from a registry is data from outside.  It is bounded, every field is
checked against the image, and it decides nothing but an order of prefetching.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Set
from pathlib import Path
from threading import Event, Thread

from nydus_fscache.errors import BackendError, BadImage, UsageError
from nydus_fscache.files import replace_file
from nydus_fscache.registry import media, referrers
from nydus_fscache.registry.manifest import NydusImage, choose_manifest, nydus_image
from nydus_fscache.registry.repository import Repository
from nydus_fscache.registry.store import Document

log = logging.getLogger("converter")

LIMIT = 4 << 20
_VERSION = 1
_MAX_ACCESSES = 16384
_MAX_NUMBER = 1 << 40
_BLOB = re.compile(r"[0-9a-f]{64}")
BOOTSTRAP_NOTE = "com.nydus-fscache.bootstrap-digest"


def parse(data: bytes, blobs: Set[str] | None = None) -> list[list[object]]:
    """The rows of a trace; ``BadImage`` when one is not what it should be.

    ``blobs``: ids that the image uses; a row about another is left out.
    """
    try:
        document = json.loads(data)
        rows = document["accesses"]
        if document["version"] != _VERSION or not isinstance(rows, list):
            raise ValueError("another version")
        rows = rows[:_MAX_ACCESSES]
        for blob, *numbers in rows:
            if not isinstance(blob, str) or not _BLOB.fullmatch(blob) or len(numbers) != 4:
                raise ValueError("a row that is not an access")
            for number in numbers:
                if type(number) is not int or not 0 <= number < _MAX_NUMBER:
                    raise ValueError("a number out of bounds")
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise BadImage(f"the trace is not valid: {e}") from e
    return [row for row in rows if blobs is None or row[0] in blobs]


def encode(rows: list[list[object]]) -> bytes:
    return json.dumps({"version": _VERSION, "accesses": rows}, separators=(",", ":")).encode()


def image_of(repository: Repository, name: str, architecture: str) -> Document:
    """The Nydus manifest that ``name`` means on this machine."""
    document = repository.manifest(name)
    if document.media_type in media.INDEXES:
        document = repository.manifest(choose_manifest(document.json, architecture).digest)
    nydus_image(document.json, name)
    return document


def push(repository: Repository, image: Document, data: bytes, bootstrap: str) -> str:
    """Attach a trace to ``image``; its digest.  ``bootstrap``: sha256:hex, of which it tells."""
    rows = parse(data)
    if not rows:
        raise UsageError("the trace is empty", hint="mount the image and start a program first")
    notes = {BOOTSTRAP_NOTE: bootstrap} if bootstrap else {}
    return referrers.attach(repository, image, media.NYDUS_TRACE, encode(rows), notes)


def pull(repository: Repository, image: Document) -> bytes | None:
    """The latest valid trace of ``image``; None when there is none."""
    return _latest(repository, image.digest, nydus_image(image.json, "the image"), Event())


def _latest(
    repository: Repository, digest: str, image: NydusImage, unwanted: Event
) -> bytes | None:
    blobs = {layer.hex for layer in image.blobs}
    blobs |= {
        str(layer.annotations[media.REF]).removeprefix("sha256:")
        for layer in image.blobs
        if media.REF in layer.annotations
    }
    for found in referrers.find(repository, digest, media.NYDUS_TRACE):
        if unwanted.is_set():
            return None
        try:
            data = referrers.read(repository, found, digest, media.NYDUS_TRACE, LIMIT)
            rows = parse(data, blobs)
        except (BadImage, BackendError) as e:
            if isinstance(e, BackendError) and e.status != 404:
                raise
            log.warning("trace %s is left out: %s", found.digest, e)
            continue
        if rows:
            return encode(rows)
    return None


class Search:
    """For ``mount``: looks for the trace of an image beside its pull.

    Never fails a mount: without a trace it is only slower.
    """

    def __init__(self, repository: Repository, digest: str, image: NydusImage) -> None:
        """``digest``: of the manifest."""
        self._target: Path | None = None
        self._named, self._unwanted = Event(), Event()
        self._thread = Thread(target=self._look, args=(repository, digest, image), daemon=True)
        self._thread.start()

    def keep_as(self, target: Path, wait_s: float) -> None:
        """It becomes that file, unless there is one.  When it takes longer than ``wait_s``, it is
        not waited for, and then it is there for the next mount."""
        if target.exists():
            self._unwanted.set()
            return
        self._target = target
        self._named.set()
        self._thread.join(wait_s)

    def _look(self, repository: Repository, digest: str, image: NydusImage) -> None:
        try:
            data = _latest(repository, digest, image, self._unwanted)
            self._named.wait()
            if data is not None and self._target is not None:
                self._target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                replace_file(self._target, data, durable=False)
        except (BackendError, BadImage, OSError) as e:
            log.info("no trace of %s: %s", digest, e)
