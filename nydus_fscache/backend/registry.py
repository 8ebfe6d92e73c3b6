"""``registry``: blobs of a repository, by their sha256, as any OCI registry serves them.

A registry may redirect to a storage service.  Redirects are followed here, one
by one: without credentials as soon as scheme, host or port differ, and never
from https to http unless ``blob_url_scheme`` asks for it.  The last URL is
remembered per blob until it answers anything but data.
"""

from __future__ import annotations

import re
import time

from nydus_fscache.backend.http_backend import HttpBackend
from nydus_fscache.config.options import Options, parse_url
from nydus_fscache.errors import BackendError, UsageError
from nydus_fscache.http.pool import PooledResponse
from nydus_fscache.http.route import Ask
from nydus_fscache.http.url import Url
from nydus_fscache.registry.auth import Authenticator
from nydus_fscache.registry.challenge import parse_challenge

_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_MAX_HOPS = 5
# an answer of these statuses means what it says about the range, also from a remembered URL
_FINAL = frozenset((200, 206))
_CACHED_S = 3600.0  # signed URLs live for minutes to hours; the rest is told by their status

REPO = re.compile(r"[a-z0-9]+(?:[._/-]+[a-z0-9]+)*")


class Registry(HttpBackend):
    """Config: ``host``, ``repo``; ``auth``, ``registry_token``, ``scheme``, ``blob_url_scheme``,
    ``blob_redirected_host``, and the common options."""

    name = "registry"

    def __init__(self, options: Options) -> None:
        host, repo = options.text("host"), options.text("repo")
        auth, token = options.text("auth", ""), options.text("registry_token", "")
        self._blob_scheme = options.text("blob_url_scheme", "")
        self._blob_host = options.text("blob_redirected_host", "")
        options.ignore("readahead", "readahead_sec")  # written by nydus-snapshotter
        if self._blob_scheme not in ("", "http", "https"):
            raise UsageError(f"blob_url_scheme is {self._blob_scheme!r}", hint="http or https")
        if not REPO.fullmatch(repo):
            raise UsageError(f"{repo!r} is no repository", hint="like library/alpine, no tag")
        super().__init__(options)
        self.base = parse_url(f"{self.scheme}://{host}", "registry.host")
        if self.base.target != "/":
            raise UsageError(f"registry.host is {host!r}", hint="a host, or host:port")
        self._repo = repo
        self.auth = Authenticator(self.pool, self.scheme, repo, auth=auth, token=token)
        self._redirected: dict[str, tuple[Url, float]] = {}

    def reauth(self, auth: str) -> bool:
        self.auth.reauth(auth)
        return True

    def repo_url(self, what: str) -> Url:
        """``what``: blobs/DIGEST or manifests/NAME."""
        base = self.base
        return Url(base.scheme, base.host, base.port, f"/v2/{self._repo}/{what}")

    def fetch(self, blob_id: str, ask: Ask) -> PooledResponse:
        response = self._from_cached(blob_id, ask)
        if response is not None:
            return response
        return self.follow(self.repo_url(f"blobs/sha256:{blob_id}"), ask, blob_id)

    def _from_cached(self, blob_id: str, ask: Ask) -> PooledResponse | None:
        cached = self._redirected.get(blob_id)
        # the signature of a URL is for one method: only what GET was sent to is remembered
        if cached is None or ask.method != "GET":
            return None
        url, until = cached
        if time.monotonic() < until:
            try:
                response = self.routes.send_to(url, ask, {}, blob_id=blob_id)
            except BackendError:
                self._redirected.pop(blob_id, None)
                raise
            if response.status in _FINAL:
                return response
            response.close()
        self._redirected.pop(blob_id, None)
        return None

    def follow(self, url: Url, ask: Ask, blob_id: str) -> PooledResponse:
        """Ask for ``url`` of this registry, and go where it sends us.

        ``blob_id`` is empty for what is no blob and whose redirect is not worth remembering.
        """
        response = self._authorised(url, ask, blob_id)
        hops = 0
        while response.status in _REDIRECTS:
            location = response.headers.get("location", "")
            response.close()
            hops += 1
            if hops > _MAX_HOPS:
                raise BackendError(f"{url}: redirected more than {_MAX_HOPS} times")
            there = self._redirect(url, location)
            if there.origin == self.base.origin:
                response = self._authorised(there, ask, blob_id)
            else:
                response = self.routes.send_to(there, ask, {}, blob_id=blob_id)
            url = there
        moved = blob_id and url.origin != self.base.origin
        if moved and ask.method == "GET" and response.status in _FINAL:
            self._redirected[blob_id] = url, time.monotonic() + _CACHED_S
        return response

    def _redirect(self, url: Url, location: str) -> Url:
        try:
            there = url.join(location)
        except ValueError as e:
            raise BackendError(f"{url} redirects to an invalid URL: {e}") from e
        if there.origin != self.base.origin:
            there = self._rewritten(there)
        if url.scheme == "https" and there.scheme != "https" and not self._blob_scheme:
            raise BackendError(
                f"{url} redirects to {there.base}, unencrypted",
                hint="set blob_url_scheme to http if that is wanted",
            )
        return there

    def _rewritten(self, url: Url) -> Url:
        """With ``blob_url_scheme`` and ``blob_redirected_host``."""
        if not self._blob_scheme and not self._blob_host:
            return url
        scheme = self._blob_scheme or url.scheme
        if self._blob_host:
            authority = self._blob_host
        elif scheme == url.scheme:
            authority = url.authority
        else:
            default = url.port in (80, 443)
            authority = url.host if default else f"{url.host}:{url.port}"
        return Url.parse(f"{scheme}://{authority}{url.target}")

    def _authorised(self, url: Url, ask: Ask, blob_id: str) -> PooledResponse:
        """To the registry itself; one 401 is answered with new authorisation."""
        sent: dict[str, str] = {}

        def authorise() -> dict[str, str]:
            nonlocal sent
            sent = self.auth.header(ask.clock)
            return {**self.own_headers, **sent}

        response = self.routes.send(url, ask, authorise=authorise, blob_id=blob_id)
        if response.status != 401:
            return response
        challenge = parse_challenge(response.headers.get("www-authenticate", ""))
        if challenge is None and sent:  # some servers challenge only those who send nothing
            response.close()
            response = self.routes.send_to(url, ask, self.own_headers, blob_id=blob_id)
            if response.status != 401:
                return response
            challenge = parse_challenge(response.headers.get("www-authenticate", ""))
        if challenge is None:
            return response
        response.close()
        self.auth.refused(sent, challenge, ask.clock)
        return self.routes.send_to(
            url, ask, {**self.own_headers, **self.auth.header(ask.clock)}, blob_id=blob_id
        )
