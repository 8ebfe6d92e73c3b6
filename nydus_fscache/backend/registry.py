"""``registry``: blobs of a repository, by their sha256, as any OCI registry serves them.

A registry may redirect to a storage service.  Redirects are followed here, one
by one: without credentials as soon as scheme, host or port differ, and never
from https to http unless ``blob_url_scheme`` asks for it.  The last URL is
remembered per blob until it answers anything but data.
"""

from __future__ import annotations

import time
from dataclasses import replace

from nydus_fscache.backend.http_backend import HttpBackend
from nydus_fscache.config.options import Options
from nydus_fscache.config.url import Url
from nydus_fscache.errors import BackendError
from nydus_fscache.http.pool import PooledResponse
from nydus_fscache.http.redirect import MAX_HOPS, REDIRECTS, too_many_hops
from nydus_fscache.http.route import RequestTemplate
from nydus_fscache.http.session import Session
from nydus_fscache.registry.auth import Authenticator, scope_of
from nydus_fscache.registry.challenge import parse_challenge
from nydus_fscache.registry.options import take_registry_options

# an answer of these statuses means what it says about the range, also from a remembered URL
_FINAL = frozenset((200, 206))
_CACHED_S = 3600.0  # signed URLs live for minutes to hours; the rest is told by their status


class Registry(HttpBackend):
    """Config: ``registry.options``."""

    name = "registry"

    def __init__(self, options: Options) -> None:
        taken = take_registry_options(options)
        super().__init__(taken.http)
        self.base = taken.base
        self.link = taken.base.authority
        self._repo = taken.repo
        self._rules = taken.rules
        # as nydusd does, tokens are fetched without the proxy of the blobs
        self._session = Session(replace(taken.http, proxy=None))
        self.auth = Authenticator(
            self._session, self.base.scheme, scope_of(taken.repo),
            auth=taken.auth, token=taken.token,
        )  # fmt: skip
        self._redirected: dict[str, tuple[Url, float]] = {}

    def close(self) -> None:
        super().close()
        self._session.close()

    def reauth(self, auth: str) -> bool:
        self.auth.reauth(auth)
        return True

    def fetch(self, blob_id: str, template: RequestTemplate) -> PooledResponse:
        response = self._from_cached(blob_id, template)
        if response is not None:
            return response
        return self._follow(template, blob_id)

    def _from_cached(self, blob_id: str, template: RequestTemplate) -> PooledResponse | None:
        cached = self._redirected.get(blob_id)
        # the signature of a URL is for one method: only what GET was sent to is remembered
        if cached is None or template.method != "GET":
            return None
        url, until = cached
        if time.monotonic() < until:
            try:
                response = self.routes.send_to(url, template, {}, blob_id=blob_id)
            except BackendError:
                self._redirected.pop(blob_id, None)
                raise
            if response.status in _FINAL:
                return response
            response.close()
        self._redirected.pop(blob_id, None)
        return None

    def _follow(self, template: RequestTemplate, blob_id: str) -> PooledResponse:
        """Ask the registry for the blob, and go where it sends us."""
        url = self.base.with_target(f"/v2/{self._repo}/blobs/sha256:{blob_id}")
        response = self._authorised(url, template, blob_id)
        hops = 0
        while response.status in REDIRECTS:
            location = response.headers.get("location", "")
            response.close()
            hops += 1
            if hops > MAX_HOPS:
                raise too_many_hops(url)
            there = self._rules.target(self.base, url, location)
            if there.origin == self.base.origin:
                response = self._authorised(there, template, blob_id)
            else:
                response = self.routes.send_to(there, template, {}, blob_id=blob_id)
            url = there
        moved = url.origin != self.base.origin
        if moved and template.method == "GET" and response.status in _FINAL:
            self._redirected[blob_id] = url, time.monotonic() + _CACHED_S
        return response

    def _authorised(self, url: Url, template: RequestTemplate, blob_id: str) -> PooledResponse:
        """To the registry itself; one 401 is answered with new authorisation."""
        sent: dict[str, str] = {}

        def authorise() -> dict[str, str]:
            nonlocal sent
            sent = self.auth.header(template.deadline)
            return {**self.own_headers, **sent}

        response = self.routes.send(url, template, authorise=authorise, blob_id=blob_id)
        if response.status != 401:
            return response
        challenge = parse_challenge(response.headers.get("www-authenticate", ""))
        if challenge is None and sent:  # some servers challenge only those who send nothing
            response.close()
            response = self.routes.send_to(url, template, self.own_headers, blob_id=blob_id)
            if response.status != 401:
                return response
            challenge = parse_challenge(response.headers.get("www-authenticate", ""))
        if challenge is None:
            return response
        response.close()
        self.auth.refused(sent, challenge, template.deadline)
        return self.routes.send_to(
            url,
            template,
            {**self.own_headers, **self.auth.header(template.deadline)},
            blob_id=blob_id,
        )
