"""Objects into a bucket of S3 or OSS, whole or in parts.

An object appears under its name when all of it came, never before: a single request is atomic,
and parts are put together by the last one.  Parts that fail are sent again, each by itself;
parts of an upload that is given up are deleted.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO
from xml.sax.saxutils import escape

from nydus_fscache.backend.make import make_backend
from nydus_fscache.backend.oss import Oss
from nydus_fscache.backend.s3 import EMPTY_SHA256, S3
from nydus_fscache.config.http_options import take_http_options
from nydus_fscache.config.options import Options
from nydus_fscache.convert.errors import Stopped
from nydus_fscache.convert.readers import readable_options
from nydus_fscache.errors import BackendError
from nydus_fscache.http.answer import StatusError
from nydus_fscache.http.call import Call, SessionAnswer, Upload
from nydus_fscache.http.retry import RetryPolicy
from nydus_fscache.http.session import Session
from nydus_fscache.http.wire import Deadline
from nydus_fscache.registry.store import PIECE

PART = 64 << 20
_MAX_PARTS = 10_000
_PARALLEL = 3
_HTTP = (
    "scheme", "timeout", "connect_timeout", "retry_limit", "skip_verify", "ca_cert_files",
    "client_cert_file", "client_key_file", "proxy",
)  # fmt: skip
_LONGEST_S = 24 * 3600.0
_STALL_S = 300.0
_ANSWER_LIMIT = 1 << 20
_UPLOAD_ID = re.compile(r"<UploadId>([^<>&\s]{1,1024})</UploadId>")


class Bucket:
    """``part``: bytes of one request; longer objects go in parts.  Thread-safe."""

    def __init__(self, kind: str, config: Mapping[str, Any], part: int = PART) -> None:
        options = readable_options(config)
        backend = make_backend({"type": kind, kind: options})
        assert isinstance(backend, S3 | Oss)
        self._backend, self._part = backend, part
        http = take_http_options(Options(kind, {k: v for k, v in options.items() if k in _HTTP}))
        self._session = Session(http, environment_proxies=True)
        self._retries, self._closing = http.retries, threading.Event()

    def close(self) -> None:
        self._closing.set()
        self._session.close()
        self._backend.close()

    def url(self, name: str) -> str:
        return str(self._backend.write_request("PUT", name)[0])

    def put(self, name: str, opened: Callable[[], BinaryIO], size: int) -> None:
        """``opened`` gives the object's bytes from the beginning, as often as it is asked."""
        if size <= self._part:
            with opened() as file:
                sha256 = hashlib.sha256()
                while piece := file.read(PIECE):
                    sha256.update(piece)
            self._send("PUT", name, {}, Upload(opened, size), sha256.hexdigest()).close()
            return
        upload_id = self._begin(name)
        try:
            tags = self._put_parts(name, upload_id, opened, size)
            self._complete(name, upload_id, tags)
        except BaseException:
            with contextlib.suppress(BackendError):
                self._send("DELETE", name, {"uploadId": upload_id}, b"", retries=0).close()
            raise

    def _begin(self, name: str) -> str:
        with self._send("POST", name, {"uploads": ""}, b"") as answer:
            text = answer.read(_ANSWER_LIMIT).decode(errors="replace")
        found = _UPLOAD_ID.search(text)
        if found is None:
            raise BackendError(
                f"{self.url(name)}: no valid answer to the begin of an upload in parts",
                hint="is it an object store?",
            )
        return found[1]

    def _put_parts(
        self, name: str, upload_id: str, opened: Callable[[], BinaryIO], size: int
    ) -> list[str]:
        """The tags of the parts, in order; a few are on their way at once."""
        step = max(self._part, -(-size // _MAX_PARTS))

        def put(number: int) -> str:
            if self._closing.is_set():
                raise Stopped("stopped")
            with opened() as file:
                file.seek(number * step)
                part = file.read(step)
            query = {"partNumber": str(number + 1), "uploadId": upload_id}
            with self._send("PUT", name, query, part, hashlib.sha256(part).hexdigest()) as answer:
                tag = answer.headers.get("etag", "")
            if not tag:
                raise BackendError(f"{self.url(name)}: a part was stored without an ETag")
            return tag

        with ThreadPoolExecutor(_PARALLEL, "part") as pool:
            try:
                return list(pool.map(put, range(-(-size // step))))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _complete(self, name: str, upload_id: str, tags: list[str]) -> None:
        parts = "".join(
            f"<Part><PartNumber>{i}</PartNumber><ETag>{escape(tag)}</ETag></Part>"
            for i, tag in enumerate(tags, 1)
        )
        document = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
        digest = hashlib.sha256(document).hexdigest()
        with self._send("POST", name, {"uploadId": upload_id}, document, digest) as answer:
            text = answer.read(_ANSWER_LIMIT)
        if b"<Error>" in text:  # S3 says 200 before it knows
            raise BackendError(f"{self.url(name)}: the parts could not be put together")

    def _send(
        self, method: str, name: str, query: Mapping[str, str], body: bytes | Upload,
        digest: str = EMPTY_SHA256, *, retries: int | None = None,
    ) -> SessionAnswer:  # fmt: skip
        deadline = Deadline(time.monotonic() + _LONGEST_S, _STALL_S)
        policy = RetryPolicy(
            deadline, self._retries if retries is None else retries, self._closing
        )
        while True:
            url, headers = self._backend.write_request(method, name, query, digest)
            try:
                answer = self._session.send(Call(method, url, {}, headers, body), deadline)
                if answer.status in (200, 201, 204):
                    return answer
                with answer:
                    raise StatusError(f"storing {name}", answer)
            except BackendError as e:
                policy.failed(e)
