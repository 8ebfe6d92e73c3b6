"""Where an answer sends us, and whether we go: the same rules for every HTTP layer.

Never from https to http unless the configuration asks for it.  Credentials are not
dealt with here: they belong to an origin (``Url.origin``), and are left behind with it.
"""

from __future__ import annotations

from nydus_fscache.config.url import Url
from nydus_fscache.errors import BackendError
from rafs_v6.values import dataclass

REDIRECTS = frozenset((301, 302, 303, 307, 308))
MAX_HOPS = 5


@dataclass(frozen=True, slots=True)
class RedirectRules:
    """``scheme`` and ``host`` replace those of URLs that leave the origin; empty, None: as sent."""

    scheme: str = ""
    host: Url | None = None

    def target(self, home: Url, url: Url, location: str) -> Url:
        """The URL that ``url``'s answer names; ``home`` is where the request belongs."""
        if not location:
            raise BackendError(
                f"{url} redirects without saying where to",
                hint="the server's answer has no Location: see its log",
            )
        try:
            there = url.join(location)
        except ValueError as e:
            raise BackendError(f"{url} redirects to an invalid URL: {e}") from e
        if there.origin != home.origin:
            there = self._rewritten(there)
        if url.scheme == "https" and there.scheme != "https" and not self.scheme:
            raise BackendError(
                f"{url} redirects to {there.base}, unencrypted",
                hint="set blob_url_scheme to http if that is wanted",
            )
        return there

    def _rewritten(self, url: Url) -> Url:
        place = self.host or url
        scheme = self.scheme or url.scheme
        # a port that goes with the other scheme was not chosen: it changes with the scheme
        port = place.port if place.port not in (80, 443) else {"http": 80, "https": 443}[scheme]
        if self.host is not None and self.host.port not in (80, 443):
            port = self.host.port
        return Url(scheme, place.host, port, url.target)


def too_many_hops(url: Url) -> BackendError:
    return BackendError(f"{url}: redirected more than {MAX_HOPS} times")
