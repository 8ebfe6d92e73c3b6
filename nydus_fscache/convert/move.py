"""Blobs from store to store: looked for first, mounted where both are one registry, else copied."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from nydus_fscache.convert.errors import Stopped
from nydus_fscache.convert.progress import Progress
from nydus_fscache.errors import BackendError
from nydus_fscache.registry import media
from nydus_fscache.registry.manifest import Descriptor, descriptor
from nydus_fscache.registry.push import PartsRefused, UploadLost
from nydus_fscache.registry.repository import Repository
from nydus_fscache.registry.store import BlobStore, BlobStream, copy_blob
from rafs_v6.values import dataclass

log = logging.getLogger("converter")

_PARALLEL = 4
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Attempts:
    """Of a whole push: ``count`` in all, ``delay_s`` between them."""

    count: int = 3
    delay_s: float = 5.0

    def run(self, work: Callable[[], _T], stop: threading.Event) -> _T:
        """``work`` again after a failure that may pass."""
        for attempt in range(1, self.count):
            try:
                return work()
            except BackendError as e:
                if not (e.retryable or isinstance(e, UploadLost | PartsRefused)):
                    raise
                log.warning(
                    "Operation failed, will retry: %s", e,
                    extra={"fields": {"attempt": attempt, "total_attempts": self.count,
                                      "retry_delay": f"{self.delay_s:g}s"}},
                )  # fmt: skip
                if stop.wait(0 if isinstance(e, PartsRefused) else self.delay_s):
                    raise Stopped("stopped") from e
        return work()


@contextmanager
def whole_if_refused(target: BlobStore, scratch: Path | None) -> Iterator[None]:
    """A registry that takes no parts gets blobs in one piece from the next attempt on."""
    try:
        yield
    except PartsRefused:
        if isinstance(target, Repository):
            target.push_whole(scratch)
        raise


class _Watched:
    """A stream that shows its progress and ends when the run stops."""

    def __init__(self, stream: BlobStream, stop: threading.Event, advance: Callable[[int], None]):
        self._stream, self._stop, self._advance = stream, stop, advance
        self.close = stream.close

    def readinto(self, buf: memoryview) -> int:
        if self._stop.is_set():
            raise Stopped("stopped")
        count = self._stream.readinto(buf)
        self._advance(count)
        return count


class Mover:
    """From ``source`` to ``target``.  ``scratch``: for registries that take no parts."""

    def __init__(
        self, source: BlobStore, target: BlobStore, scratch: Path, stop: threading.Event,
        progress: Progress, attempts: Attempts,
    ) -> None:  # fmt: skip
        self._source, self._target, self._scratch = source, target, scratch
        self._stop, self._progress, self._attempts = stop, progress, attempts

    def all(self, blobs: Iterable[Descriptor]) -> None:
        """Each digest once; a few at a time."""
        once = {blob.digest: blob for blob in blobs}
        with ThreadPoolExecutor(_PARALLEL, "copy") as pool:
            jobs = [pool.submit(self.one, blob) for blob in once.values()]
            try:
                for job in as_completed(jobs):
                    job.result()
            except BaseException:
                self._stop.set()
                pool.shutdown(cancel_futures=True)
                raise

    def stored(self, work: Callable[[], _T]) -> _T:
        """``work``, which stores something in the target: again, where that may help."""

        def once() -> _T:
            with whole_if_refused(self._target, self._scratch):
                return work()

        return self._attempts.run(once, self._stop)

    def one(self, blob: Descriptor) -> None:
        self._attempts.run(lambda: self._one(blob), self._stop)

    def _one(self, blob: Descriptor) -> None:
        if self._stop.is_set():
            raise Stopped("stopped")
        task = self._progress.begin(blob.digest, blob.size)
        if self._target.has_blob(blob.digest) is not None:
            task.end("exists")
            return
        if mount(self._source, self._target, blob.digest):
            task.end("mounted")
            return
        started = time.monotonic()
        stream = _Watched(
            self._source.open_blob(blob.digest, blob.size), self._stop, task.advance
        )
        with whole_if_refused(self._target, self._scratch):
            copy_blob(stream, self._target.writer(), blob)
        task.end(f"copied in {time.monotonic() - started:.1f}s")


def with_originals(store: BlobStore, blobs: Iterable[Descriptor]) -> Iterator[Descriptor]:
    """``blobs``, and behind each of a zran image the gzip layer of ``store`` that it refers to."""
    for blob in blobs:
        yield blob
        original = blob.annotations.get(media.REF)
        if not original:
            continue
        size = store.has_blob(original)
        if size is None:
            raise BackendError(
                f"the gzip layer {original}, which {blob.digest} refers to, is not there",
                hint="copy the image from the repository where it was converted",
            )
        yield descriptor({"mediaType": "", "digest": original, "size": size})


def mount(source: BlobStore, target: BlobStore, digest: str) -> bool:
    """The registry itself takes the blob over, when both are its repositories."""
    return (
        isinstance(source, Repository)
        and isinstance(target, Repository)
        and source.host == target.host
        and source.repo != target.repo
        and target.mount(digest, source.repo)
    )
