"""Exactly the bytes of a range, out of whatever a server makes of ``Range``.

A range that breaks in the middle is continued by a request for the rest.  A
server that ignores ``Range`` is tolerated while the way to the offset is short.
A length or position that contradicts the request is an error: bytes are never
guessed to belong where they were asked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from nydus_fscache.errors import BackendError
from nydus_fscache.http.answer import Answer, StatusError
from nydus_fscache.http.retry import RetryPolicy

# to read past more than this for each range costs more than any cache saves
SKIP_LIMIT = 32 * 1024 * 1024

_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")

OpenRange = Callable[[int, int], Answer]  # (offset, length) -> any answer but a redirect


class ResumingRange:
    """``what`` names the blob in messages."""

    def __init__(
        self, ask: OpenRange, off: int, length: int, policy: RetryPolicy, what: str
    ) -> None:
        self._ask = ask
        self._off = off
        self._end = off + length
        self._policy = policy
        self._what = what
        self.total: int | None = None  # bytes of the whole blob, where the server says so
        self._body: Answer | None = None
        self._body_end = off  # where the answer that is being received ends
        if length:
            self._reopen()

    def readinto(self, buf: memoryview) -> int:
        while self._off < self._end:
            try:
                if self._body is None:
                    self._open()
                count = self._receive(buf)
            except BackendError as e:
                self._finish_body(str(e))
                self._policy.failed(e)
                continue
            if count:
                self._off += count
                return count
            self.close()  # the answer was shorter than the range: ask for the rest
        return 0

    def close(self) -> None:
        if self._body is not None:
            self._body.close()
            self._body = None

    def _reopen(self) -> None:
        while self._body is None:
            try:
                self._open()
            except BackendError as e:
                self._finish_body(str(e))
                self._policy.failed(e)

    def _finish_body(self, why: str) -> None:
        if self._body is not None and self._body.report is not None:
            self._body.report(why)
        self.close()

    def _receive(self, buf: memoryview) -> int:
        assert self._body is not None
        room = min(self._end, self._body_end) - self._off
        if not room:
            return 0
        count = self._body.readinto(buf[:room])
        if not count:
            raise BackendError(
                f"{self._what}: {self._body.peer} sent {self._off} bytes of {self._end}",
                retryable=True,
            )
        if self._off + count == self._end == self._body_end:
            self._finish_body("")  # the connection can serve others before the caller is done
        return count

    def _open(self) -> None:
        body = self._body = self._ask(self._off, self._end - self._off)
        content_range = body.headers.get("content-range")
        if body.status == 206 or (body.status == 200 and content_range):
            self._body_end = self._ranged(body, content_range)
        elif body.status == 200:
            self._body_end = self._end
            self._skip_to_offset(body)
        else:
            raise StatusError(self._what, body)

    def _ranged(self, body: Answer, content_range: str | None) -> int:
        wanted = self._end - self._off
        if content_range is None:
            if body.length != wanted:
                raise self._wrong(body, f"{body.length} bytes where {wanted} were asked for")
            return self._end
        match = _CONTENT_RANGE.fullmatch(content_range)
        if not match:
            raise self._wrong(body, "a malformed Content-Range")
        first, end = int(match[1]), int(match[2]) + 1
        if first != self._off or not first < end <= self._end:
            raise self._wrong(body, f"bytes {first}-{end - 1} for {self._off}-{self._end - 1}")
        if body.length is not None and body.length != end - first:
            raise self._wrong(body, f"{body.length} bytes as bytes {first}-{end - 1}")
        if match[3] != "*":
            self.total = int(match[3])
            if self.total < self._end:
                raise self._too_short(body, self.total)
        return end

    def _skip_to_offset(self, body: Answer) -> None:
        if body.length is not None and body.length < self._end:
            raise self._too_short(body, body.length)
        if self._off > SKIP_LIMIT:
            raise BackendError(
                f"{self._what}: {body.peer} ignores Range",
                hint="use a server or mirror that supports ranged requests",
            )
        scratch = memoryview(bytearray(min(self._off, 256 * 1024)))
        left = self._off
        while left:
            count = body.readinto(scratch[: min(left, len(scratch))])
            if not count:
                raise self._wrong(body, "a body that ends before the range")
            left -= count

    def _wrong(self, body: Answer, what: str) -> BackendError:
        return BackendError(
            f"{self._what}: {body.peer} sent {what}",
            hint="the server, or a proxy before it, does not handle ranges correctly",
            retryable=body.report is not None,  # a mirror or proxy: the origin may do better
        )

    def _too_short(self, body: Answer, size: int) -> BackendError:
        return BackendError(
            f"{self._what}: {size} bytes at {body.peer}, {self._end} are needed",
            hint="the blob was cut or is another one: upload it again",
            retryable=body.report is not None,
        )
