"""Uploads of blobs whose digest is known only at their end, and that survive a broken connection.

What fits into one part is sent whole, once its digest is known and the registry
said that it lacks it.  A longer blob goes part by part while it is still being
made; a part that broke is continued where the registry says it is.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

from nydus_fscache.config.url import Url
from nydus_fscache.errors import BackendError
from nydus_fscache.http.call import SessionAnswer
from nydus_fscache.http.call import Upload as Body
from nydus_fscache.registry.answers import next_place, refusal
from nydus_fscache.registry.client import PUSH, RegistryClient

PART = 5 << 20  # at least 5 MiB, which some registries ask of every part but the last
LONGEST_S = 24 * 3600.0  # of one blob: silence ends a transfer, not its length
_CANCEL_S = 10.0
_RANGE = re.compile(r"(?:bytes=)?0-(\d{1,19})")
_OCTETS = {"Content-Type": "application/octet-stream"}


class PartsRefused(BackendError):
    """The registry takes blobs in one piece only."""


class UploadLost(BackendError):
    """The registry forgot what it had of the blob: it has to come again from its beginning."""


class Spooled:
    """For a registry that takes no parts: the blob lies in an unnamed file until it is whole."""

    def __init__(self, client: RegistryClient, repo: str, scratch: Path | None) -> None:
        self._client, self._repo = client, repo
        self._file = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115 - closed by abort()

    def write(self, data: bytes | memoryview) -> None:
        self._file.write(data)

    def finish(self, digest: str) -> None:
        deadline = time.monotonic() + LONGEST_S
        self._file.flush()
        if self._client.blob_size(self._repo, digest, deadline=deadline) is None:
            length = os.fstat(self._file.fileno()).st_size
            body = Body(self._open, length)
            self._client.upload_blob(self._repo, digest, body, deadline=deadline)
        self.abort()

    def abort(self) -> None:
        self._file.close()

    def _open(self) -> BinaryIO:
        return open(f"/proc/self/fd/{self._file.fileno()}", "rb")


class Upload:
    """A blob on its way.  Used by one thread; parts are sent by another, one at a time."""

    def __init__(self, client: RegistryClient, repo: str, part: int = PART) -> None:
        self._client, self._repo = client, repo
        self._part = part
        self._deadline = time.monotonic() + LONGEST_S
        self._buffer = bytearray()
        self._place: Url | None = None
        self._sent = 0  # bytes that the registry has
        self._sender: ThreadPoolExecutor | None = None
        self._sending: Future[None] | None = None

    def write(self, data: bytes | memoryview) -> None:
        self._buffer += data
        while len(self._buffer) >= self._part:
            part = bytes(memoryview(self._buffer)[: self._part])
            del self._buffer[: self._part]
            self._wait()
            if self._sender is None:
                self._sender = ThreadPoolExecutor(1, "push")
            self._sending = self._sender.submit(self._patch, part)

    def finish(self, digest: str) -> None:
        """``digest`` is of all that was written; the registry checks it, too."""
        self._wait()
        rest, self._buffer = bytes(self._buffer), bytearray()
        if self._place is None and self._is_there(digest):
            self._end()
            return
        policy = self._client.policy(self._deadline)
        while True:
            try:
                self._put(digest, rest)
                break
            except BackendError as e:
                # The answer may be what broke, not the upload; asked again, it is unknown (404).
                if e.status == 404 and self._is_there(digest):
                    break
                policy.failed(e)
            if self._is_there(digest):
                break
            if self._sent:
                before = self._sent
                self._locate(before, before + len(rest))
                rest = rest[self._sent - before :]
            else:
                self._cancel()
        self._place = None
        self._end()

    def abort(self) -> None:
        if self._sending is not None:
            # The part on its way ends by itself; its outcome does not matter any more.
            self._sending.cancel()
            with contextlib.suppress(Exception):
                self._sending.result()
        self._cancel()
        self._end()

    def _is_there(self, digest: str) -> bool:
        size = self._client.blob_size(self._repo, digest, deadline=self._deadline)
        return size is not None

    def _end(self) -> None:
        if self._sender is not None:
            self._sender.shutdown(wait=False)
            self._sender = None

    def _cancel(self) -> None:
        """Registries also forget uploads by themselves."""
        place, self._place = self._place, None
        if place is not None:
            deadline = time.monotonic() + _CANCEL_S
            with contextlib.suppress(BackendError):
                self._client.request_at("DELETE", place, self._repo, deadline=deadline).close()

    def _wait(self) -> None:
        if self._sending is not None:
            sending, self._sending = self._sending, None
            sending.result()

    def _start(self) -> Url:
        """The place of the upload, which begins when there is none."""
        if self._place is None:
            with self._client.request(
                "POST", self._repo, "blobs/uploads/", deadline=self._deadline, actions=PUSH
            ) as answer:
                if answer.status != 202:
                    raise refusal(f"an upload to {self._repo}", answer)
                self._place = next_place(answer)
        return self._place

    def _patch(self, part: bytes) -> None:
        policy = self._client.policy(self._deadline)
        begin, end = self._sent, self._sent + len(part)
        while self._sent < end:
            try:
                self._send(part[self._sent - begin :], begin, end)
            except BackendError as e:
                policy.failed(e)
                self._locate(begin, end)

    def _send(self, part: bytes, begin: int, end: int) -> None:
        headers = {**_OCTETS, "Content-Range": f"{self._sent}-{end - 1}"}
        with self._client.request_at(
            "PATCH", self._start(), self._repo, deadline=self._deadline, headers=headers, body=part
        ) as answer:
            if answer.status in (404, 405, 411, 501) and not begin:
                raise PartsRefused(
                    f"{answer.peer} takes no uploads in parts", status=answer.status
                )
            if answer.status not in (201, 202, 204):
                error = refusal(f"an upload to {self._repo}", answer)
                # It has more or less of the upload than we believe: it says so when asked.
                error.retryable |= answer.status == 416
                raise error
            self._moved(answer)
            self._sent = end

    def _moved(self, answer: SessionAnswer) -> None:
        if answer.headers.get("location"):
            self._place = next_place(answer)

    def _locate(self, begin: int, end: int) -> None:
        """How much of the upload the registry has, by its own word."""
        if self._place is None:
            return
        with self._client.request_at(
            "GET", self._place, self._repo, deadline=self._deadline
        ) as answer:
            if answer.status == 404 and not begin:
                self._place, self._sent = None, 0  # only this part is lost, which is still here
                return
            found = _RANGE.fullmatch(answer.headers.get("range", ""))
            have = int(found[1]) + 1 if found else 0
            # "0-0" is also how registries say that they have nothing.
            have = 0 if have == 1 and not begin else have
            if answer.status not in (200, 204) or not begin <= have <= end:
                raise UploadLost(
                    f"{answer.peer} lost an upload: it has {have} bytes of {begin}",
                    hint="its storage, or the balancer before it, forgets uploads",
                )
            self._moved(answer)
            self._sent = have

    def _put(self, digest: str, rest: bytes) -> None:
        place = self._start()
        mark = "&" if "?" in place.target else "?"
        place = place.with_target(f"{place.target}{mark}digest={quote(digest)}")
        headers = dict(_OCTETS)
        if self._sent and rest:
            headers["Content-Range"] = f"{self._sent}-{self._sent + len(rest) - 1}"
        with self._client.request_at(
            "PUT", place, self._repo, deadline=self._deadline, headers=headers, body=rest
        ) as answer:
            if answer.status not in (201, 202, 204):
                raise refusal(f"blob {digest}", answer)
