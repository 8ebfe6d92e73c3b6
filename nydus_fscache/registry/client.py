"""One registry, as pulls and pushes see it: manifests, blobs, uploads.

Built on ``http.session``: none of this is on the path of a reader.  What is asked for by digest
is verified.  Safe requests are repeated with back-off; a range that breaks is continued.
Deadlines are ``time.monotonic()`` values.  Thread-safe.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar
from urllib.parse import quote

from nydus_fscache import __version__
from nydus_fscache.config.http_options import HttpOptions, environment_headers
from nydus_fscache.config.url import Url
from nydus_fscache.errors import BackendError, BadImage
from nydus_fscache.http.answer import StatusError
from nydus_fscache.http.call import Call, SessionAnswer, Upload
from nydus_fscache.http.ranges import ResumingRange
from nydus_fscache.http.redirect import RedirectRules
from nydus_fscache.http.retry import RetryPolicy
from nydus_fscache.http.session import Session
from nydus_fscache.http.wire import Deadline
from nydus_fscache.registry.answers import next_place, refusal, size_of
from nydus_fscache.registry.auth import Authenticator, check_auth, scope_of
from nydus_fscache.registry.challenge import parse_challenge
from nydus_fscache.registry.manifest import INDEX_TYPES, MANIFEST_TYPES, Descriptor
from nydus_fscache.registry.options import RegistryOptions, host_url
from rafs_v6.values import dataclass

MANIFEST_LIMIT = 8 * 1024 * 1024  # what the original reads of an index, too
ACCEPT = ", ".join((*MANIFEST_TYPES, *INDEX_TYPES))
PULL, PUSH = "pull", "pull,push"
_NO_HEAD = (405, 501)  # registries that take GET alone
_ANSWER_S = 120.0  # a registry may verify and move a large upload before it answers
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_HEADERS = {"User-Agent": f"nydus-fscache/{__version__}"}

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Document:
    """A manifest or an index: ``digest`` is the sha256 of ``body`` (sha256:hex)."""

    body: bytes
    media_type: str
    digest: str


class RegistryClient:
    """``host`` may have a port; ``auth`` is base64 of user:password.  A context manager."""

    def __init__(
        self,
        host: str,
        http: HttpOptions = HttpOptions(),  # noqa: B008 - a frozen value
        *,
        auth: str = "",
        token: str = "",
        rules: RedirectRules = RedirectRules(),  # noqa: B008 - likewise
        environment_proxies: bool = False,
    ) -> None:
        self.base = host_url(http.scheme, host, "the registry's host")
        self._http = http
        self._auth = check_auth(auth)
        self._token = token
        self._session = Session(http, rules, environment_proxies=environment_proxies)
        self._own_headers = environment_headers()
        self._lock = threading.Lock()
        self._authenticators: dict[str, Authenticator] = {}
        self._closing = threading.Event()

    @classmethod
    def of(cls, options: RegistryOptions) -> RegistryClient:
        """With the options of the registry backend."""
        return cls(
            options.base.authority,
            options.http,
            auth=options.auth,
            token=options.token,
            rules=options.rules,
        )

    def __enter__(self) -> RegistryClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._closing.set()
        self._session.close()

    # Manifests

    def manifest(self, repo: str, name: str, *, deadline: float, accept: str = ACCEPT) -> Document:
        """``name``: tag or digest; verified against the latter."""

        def get() -> Document:
            call = self._call("GET", repo, f"manifests/{name}", {"Accept": accept})
            with self._authorised(call, repo, PULL, deadline) as answer:
                if answer.status != 200:
                    raise StatusError(f"manifest {repo}:{name}", answer)
                body = answer.read(MANIFEST_LIMIT)
                media_type = answer.headers.get("content-type", "").partition(";")[0].strip()
            return Document(body, media_type, f"sha256:{hashlib.sha256(body).hexdigest()}")

        document = self._retried(get, deadline)
        if _DIGEST.fullmatch(name) and document.digest != name:
            raise BadImage(
                f"the registry sent a manifest with digest {document.digest} for {name}",
                hint="the registry or something before it is faulty, or hostile",
            )
        return document

    def manifest_digest(
        self, repo: str, name: str, *, deadline: float, accept: str = ACCEPT
    ) -> str | None:
        """As the registry says (HEAD); None when there is no such manifest."""

        def head() -> str | None:
            call = self._call("HEAD", repo, f"manifests/{name}", {"Accept": accept})
            with self._authorised(call, repo, PULL, deadline) as answer:
                if answer.status == 404:
                    return None
                if answer.status == 200:
                    return answer.headers.get("docker-content-digest", "")
                if answer.status not in _NO_HEAD:
                    raise StatusError(f"manifest {repo}:{name}", answer)
            try:
                return self.manifest(repo, name, deadline=deadline, accept=accept).digest
            except StatusError as e:
                if e.status == 404:
                    return None
                raise

        digest = self._retried(head, deadline)
        if digest is not None and not _DIGEST.fullmatch(digest):
            return self.manifest(repo, name, deadline=deadline, accept=accept).digest
        return digest

    def put_manifest(
        self, repo: str, name: str, body: bytes, media_type: str, *, deadline: float
    ) -> str:
        """Push it as ``name`` (tag or its digest); returns its digest."""

        def put() -> None:
            headers = {"Content-Type": media_type}
            call = self._call("PUT", repo, f"manifests/{name}", headers, body)
            with self._authorised(call, repo, PUSH, deadline, _ANSWER_S) as answer:
                if answer.status not in (200, 201, 202):
                    raise refusal(f"manifest {repo}:{name}", answer)

        self._retried(put, deadline)
        return f"sha256:{hashlib.sha256(body).hexdigest()}"

    # Blobs

    def blob_size(self, repo: str, digest: str, *, deadline: float) -> int | None:
        """Bytes of a blob (HEAD); None when the repository does not have it."""

        def head() -> int | None:
            call = self._call("HEAD", repo, f"blobs/{digest}")
            with self._authorised(call, repo, PULL, deadline) as answer:
                if answer.status not in _NO_HEAD:
                    return size_of(answer, digest)
            first = self._call("GET", repo, f"blobs/{digest}", {"Range": "bytes=0-0"})
            with self._authorised(first, repo, PULL, deadline) as answer:
                return size_of(answer, digest)

        return self._retried(head, deadline)

    @contextmanager
    def open_blob(
        self, repo: str, digest: str, off: int, length: int, *, deadline: float
    ) -> Iterator[ResumingRange]:
        """Bytes [off, off + length) as they come (``readinto``); not verified."""
        limit = self._deadline(deadline)

        def ask(off: int, length: int) -> SessionAnswer:
            headers = {"Range": f"bytes={off}-{off + length - 1}"}
            call = self._call("GET", repo, f"blobs/{digest}", headers)
            return self._authorised(call, repo, PULL, deadline)

        policy = RetryPolicy(limit, self._http.retries, self._closing)
        stream = ResumingRange(ask, off, length, policy, f"blob {digest}")
        try:
            yield stream
        finally:
            stream.close()

    def blob(self, repo: str, layer: Descriptor, *, limit: int, deadline: float) -> bytes:
        """A whole blob, verified against its digest; refused when larger than ``limit``."""
        if layer.size > limit:
            raise BadImage(f"layer {layer.digest} has {layer.size} bytes, {limit} are allowed")
        try:
            data = self._whole(repo, layer, deadline)
        except BackendError:
            self._explain(repo, layer, deadline)
            raise
        if f"sha256:{hashlib.sha256(data).hexdigest()}" != layer.digest:
            self._explain(repo, layer, deadline)
            raise BadImage(
                f"layer {layer.digest} does not match its digest",
                hint="the registry or something before it is faulty, or hostile",
            )
        return bytes(data)

    def _whole(self, repo: str, layer: Descriptor, deadline: float) -> bytearray:
        data = bytearray(layer.size)
        with (
            self.open_blob(repo, layer.digest, 0, layer.size, deadline=deadline) as stream,
            memoryview(data) as view,
        ):
            have = 0
            while count := stream.readinto(view[have:]):
                have += count
        return data

    def _explain(self, repo: str, layer: Descriptor, deadline: float) -> None:
        """Of a blob that could not be read: is it there, and of that size?"""
        actual = self.blob_size(repo, layer.digest, deadline=deadline)
        if actual is None:
            raise BackendError(
                f"layer {layer.digest} is not in {self.base.authority}/{repo}",
                hint="push the image again",
                status=404,
            )
        if actual != layer.size:
            raise BadImage(
                f"layer {layer.digest} has {actual} bytes, {layer.size} by the manifest",
                hint="push the image again",
            )

    # Uploads

    def mount_blob(self, repo: str, digest: str, source: str, *, deadline: float) -> bool:
        """Take the blob over from the repository ``source`` of this registry; False: it cannot."""

        def post() -> bool:
            query = f"blobs/uploads/?mount={quote(digest)}&from={quote(source, safe='')}"
            call = self._call("POST", repo, query)
            scopes = f"{scope_of(repo, PUSH)} {scope_of(source)}"
            with self._authorised(call, repo, PUSH, deadline, scopes=scopes) as answer:
                if answer.status == 201:
                    return True
                if answer.status == 202:  # an upload was begun instead
                    self._abandon(next_place(answer), repo, deadline)
                return False

        return self._retried(post, deadline)

    def upload_blob(
        self, repo: str, digest: str, body: bytes | Upload, *, deadline: float, chunk: int = 0
    ) -> None:
        """Push a blob, whole or in pieces of ``chunk`` bytes; the registry verifies the digest."""

        def push() -> None:
            place = self._begin_upload(repo, deadline)
            data: bytes | Upload = body
            if chunk:
                place = self._send_pieces(place, repo, body, chunk, deadline)
                data = b""
            mark = "&" if "?" in place.target else "?"
            place = place.with_target(f"{place.target}{mark}digest={quote(digest)}")
            call = Call("PUT", place, self._headers(_OCTETS), self._own(place), data)
            with self._authorised(call, repo, PUSH, deadline, _ANSWER_S) as answer:
                if answer.status != 201:
                    raise refusal(f"blob {digest}", answer)

        self._retried(push, deadline)

    def _begin_upload(self, repo: str, deadline: float) -> Url:
        call = self._call("POST", repo, "blobs/uploads/")
        with self._authorised(call, repo, PUSH, deadline) as answer:
            if answer.status != 202:
                raise refusal(f"an upload to {repo}", answer)
            return next_place(answer)

    def _send_pieces(
        self, place: Url, repo: str, body: bytes | Upload, chunk: int, deadline: float
    ) -> Url:
        sent = 0
        for piece in _pieces(body, chunk):
            headers = {**_OCTETS, "Content-Range": f"{sent}-{sent + len(piece) - 1}"}
            call = Call("PATCH", place, self._headers(headers), self._own(place), piece)
            with self._authorised(call, repo, PUSH, deadline, _ANSWER_S) as answer:
                if answer.status not in (202, 204):
                    raise refusal(f"an upload to {repo}", answer)
                place = next_place(answer)
            sent += len(piece)
        return place

    def _abandon(self, place: Url, repo: str, deadline: float) -> None:
        call = Call("DELETE", place, self._headers({}), self._own(place))
        self._authorised(call, repo, PUSH, deadline).close()

    # Requests

    def request(
        self, method: str, repo: str, what: str, *, deadline: float, actions: str = PULL,
        headers: Mapping[str, str] | None = None, body: bytes | Upload = b"",
    ) -> SessionAnswer:  # fmt: skip
        """Any other request below ``/v2/REPO/``, authorised; whatever answer but a redirect."""
        call = self._call(method, repo, what, headers or {}, body)
        return self._authorised(call, repo, actions, deadline)

    def request_at(
        self, method: str, place: Url, repo: str, *, deadline: float,
        headers: Mapping[str, str] | None = None, body: bytes = b"",
    ) -> SessionAnswer:  # fmt: skip
        """A request to the place of an upload, as the registry named it; authorised for pushing."""
        call = Call(method, place, self._headers(headers or {}), self._own(place), body)
        return self._authorised(call, repo, PUSH, deadline, _ANSWER_S)

    def backend_options(self) -> dict[str, object]:
        """This client's ways and secrets, as the ``registry`` backend takes them."""
        tls = self._http.tls
        options: dict[str, object] = {
            "scheme": self.base.scheme,
            "host": self.base.authority,
            "skip_verify": tls.skip_verify,
            "ca_cert_files": list(tls.ca_cert_files),
            "client_cert_file": tls.client_cert_file,
            "client_key_file": tls.client_key_file,
            "auth": self._auth,
        }
        proxy = self._session.environment_proxy(self.base)
        if proxy.startswith("http"):
            options["proxy"] = {"url": proxy, "fallback": False}
        return {name: value for name, value in options.items() if value}

    def policy(self, deadline: float) -> RetryPolicy:
        """For one request of the caller's own: its attempts, and the waits between them."""
        return RetryPolicy(self._deadline(deadline), self._http.retries, self._closing)

    def _call(
        self,
        method: str,
        repo: str,
        what: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | Upload = b"",
    ) -> Call:
        url = self.base.with_target(f"/v2/{repo}/{what}")
        return Call(method, url, self._headers(headers or {}), self._own(url), body)

    def _headers(self, headers: Mapping[str, str]) -> dict[str, str]:
        return {**_HEADERS, **headers}

    def _own(self, url: Url) -> dict[str, str]:
        """Headers of the environment are for the configured host."""
        return self._own_headers if url.origin == self.base.origin else {}

    def _deadline(self, at: float, stall_s: float = 0.0) -> Deadline:
        return Deadline(at, max(self._http.stall_s, stall_s))

    def _authorised(
        self,
        call: Call,
        repo: str,
        actions: str,
        at: float,
        stall_s: float = 0.0,
        *,
        scopes: str = "",
    ) -> SessionAnswer:
        """One 401 is answered with new authorisation.  An upload elsewhere gets none."""
        deadline = self._deadline(at, stall_s)
        if call.url.origin != self.base.origin:
            return self._session.send(call, deadline)
        auth = self._authenticator(scopes or scope_of(repo, actions))
        sent = auth.header(deadline)
        answer = self._session.send(_with(call, sent), deadline)
        if answer.status != 401:
            return answer
        challenge = parse_challenge(answer.headers.get("www-authenticate", ""))
        if challenge is None and sent:  # some servers challenge only those who send nothing
            answer.close()
            answer = self._session.send(call, deadline)
            if answer.status != 401:
                return answer
            challenge = parse_challenge(answer.headers.get("www-authenticate", ""))
        if challenge is None:
            return answer
        answer.close()
        auth.refused(sent, challenge, deadline)
        return self._session.send(_with(call, auth.header(deadline)), deadline)

    def _authenticator(self, scopes: str) -> Authenticator:
        with self._lock:
            if scopes not in self._authenticators:
                self._authenticators[scopes] = Authenticator(
                    self._session, self.base.scheme, scopes, auth=self._auth, token=self._token
                )
            return self._authenticators[scopes]

    def _retried(self, attempt: Callable[[], _T], at: float) -> _T:
        policy = RetryPolicy(self._deadline(at), self._http.retries, self._closing)
        while True:
            try:
                return attempt()
            except BackendError as e:
                policy.failed(e)


_OCTETS = {"Content-Type": "application/octet-stream"}


def _with(call: Call, more: Mapping[str, str]) -> Call:
    return Call(call.method, call.url, call.headers, {**call.own_headers, **more}, call.body)


def _pieces(body: bytes | Upload, chunk: int) -> Iterator[bytes]:
    if isinstance(body, bytes):
        for at in range(0, len(body), chunk):
            yield body[at : at + chunk]
        return
    with body.open() as file:
        while piece := file.read(chunk):
            yield piece
