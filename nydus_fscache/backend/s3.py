"""``s3``: objects of a bucket, requests signed with AWS Signature Version 4.

Path style by default, as every S3 server speaks it; ``addressing`` "virtual" puts
the bucket into the host.  Without keys, requests are not signed (public buckets).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import field
from datetime import UTC, datetime
from types import MappingProxyType
from urllib.parse import quote

from nydus_fscache.backend.http_backend import HttpBackend
from nydus_fscache.config.http_options import take_http_options
from nydus_fscache.config.options import Options
from nydus_fscache.config.url import Url, parse_url
from nydus_fscache.errors import BackendError, UsageError
from nydus_fscache.http.pool import PooledResponse
from nydus_fscache.http.redirect import MAX_HOPS, REDIRECTS, RedirectRules, too_many_hops
from nydus_fscache.http.route import RequestTemplate
from rafs_v6.values import dataclass

EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
NO_QUERY: Mapping[str, str] = MappingProxyType({})
_SAME = RedirectRules()
_DEFAULT_ENDPOINT = "s3.amazonaws.com"


@dataclass(frozen=True, slots=True)
class Keys:
    """Keys that sign requests; ``region`` is part of the signing key."""

    region: str
    key_id: str
    secret: str = field(repr=False)
    session_token: str = field(default="", repr=False)


def sign_v4(
    method: str, url: Url, headers: Mapping[str, str], keys: Keys, now: datetime,
    payload_sha256: str = EMPTY_SHA256,
) -> dict[str, str]:  # fmt: skip
    """The headers that authorise a request.

    ``headers``: more headers to sign.  The path must be percent-encoded already; a query too,
    sorted, with a ``=`` behind each name.
    ``payload_sha256``: of the body, as hex.
    """
    stamp = now.strftime("%Y%m%dT%H%M%SZ")
    added = {"x-amz-content-sha256": payload_sha256, "x-amz-date": stamp}
    if keys.session_token:
        added["x-amz-security-token"] = keys.session_token
    signed = {name.lower(): value.strip() for name, value in headers.items()}
    signed |= {"host": url.authority, **added}
    names = ";".join(sorted(signed))
    lines = [f"{name}:{signed[name]}\n" for name in sorted(signed)]
    path, _, query = url.target.partition("?")
    canonical = "\n".join([method, path, query, "".join(lines), names, payload_sha256])
    scope = f"{stamp[:8]}/{keys.region}/s3/aws4_request"
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{digest}"
    key = b"AWS4" + keys.secret.encode()
    for part in (*scope.split("/"), text):
        key = hmac.digest(key, part.encode(), "sha256")
    credential = f"Credential={keys.key_id}/{scope}"
    authorization = f"AWS4-HMAC-SHA256 {credential},SignedHeaders={names},Signature={key.hex()}"
    return {**added, "Authorization": authorization}


class S3(HttpBackend):
    """Config: ``region``, ``bucket_name``; ``endpoint``, ``object_prefix``, ``access_key_id``,
    ``access_key_secret``, ``session_token``, ``addressing``, and the common options."""

    name = "s3"

    def __init__(self, options: Options) -> None:
        region = options.header_text("region")
        bucket = options.text("bucket_name")
        endpoint = options.text("endpoint", "") or _DEFAULT_ENDPOINT
        self._prefix = options.text("object_prefix", "")
        key_id = options.header_text("access_key_id", "")
        secret = options.text("access_key_secret", "")
        self._keys = Keys(region, key_id, secret, options.header_text("session_token", ""))
        addressing = options.text("addressing", "path")
        if bool(key_id) != bool(secret):
            raise UsageError("s3 needs both access_key_id and access_key_secret, or none")
        if addressing not in ("path", "virtual") or not bucket:
            raise UsageError("s3 has no such addressing", hint="addressing is path or virtual")
        http = take_http_options(options)
        options.end()
        super().__init__(http)
        virtual = addressing == "virtual"
        host = f"{bucket}.{endpoint}" if virtual else endpoint
        self._base = parse_url(f"{http.scheme}://{host}", "s3.endpoint")
        self.link = self._base.authority
        if self._base.target != "/":
            raise UsageError(f"s3.endpoint is {endpoint!r}", hint="a host, or host:port")
        self._folder = "/" if virtual else f"/{quote(bucket, safe='')}/"

    def write_request(
        self, method: str, name: str, query: Mapping[str, str] = NO_QUERY,
        payload_sha256: str = EMPTY_SHA256,
    ) -> tuple[Url, dict[str, str]]:  # fmt: skip
        """URL and headers of a request that writes the object ``name``.

        ``payload_sha256``: of the body, as hex.
        """
        words = "&".join(f"{k}={quote(v, safe='-_.~')}" for k, v in sorted(query.items()))
        url = self._url(name)
        url = url.with_target(f"{url.target}?{words}") if words else url
        headers = dict(self.own_headers)
        if self._keys.key_id:
            headers |= sign_v4(method, url, {}, self._keys, datetime.now(UTC), payload_sha256)
        return url, headers

    def _url(self, name: str) -> Url:
        return self._base.with_target(self._folder + quote(self._prefix + name, safe="/-_.~"))

    def fetch(self, blob_id: str, template: RequestTemplate) -> PooledResponse:
        """A new bucket answers 307 until its name is known: the request is signed anew."""
        home = url = self._url(blob_id)
        response = self._signed(url, template, blob_id)
        for _ in range(MAX_HOPS):
            if response.status not in REDIRECTS:
                return response
            location = response.headers.get("location", "")
            region = response.headers.get("x-amz-bucket-region", "")
            response.close()
            if region and not location:
                raise BackendError(
                    f"{url}: the bucket is in the region {region[:40]!r}", hint="set s3.region"
                )
            url = _SAME.target(home, url, location)
            if _domain(url.host) != _domain(home.host):
                raise BackendError(
                    f"{home} redirects to {url.base}, which is not of the same service",
                    hint="check s3.endpoint",
                )
            response = self._signed(url, template, blob_id)
        response.close()
        raise too_many_hops(home)

    def _signed(self, url: Url, template: RequestTemplate, blob_id: str) -> PooledResponse:
        def authorise() -> dict[str, str]:
            if not self._keys.key_id:
                return self.own_headers
            ranged = {k: v for k, v in template.headers.items() if k == "Range"}
            now = datetime.now(UTC)
            signature = sign_v4(template.method, url, ranged, self._keys, now)
            return {**self.own_headers, **signature}

        return self.routes.send(url, template, authorise=authorise, blob_id=blob_id)


def _domain(host: str) -> str:
    """The last two labels of a name; an address as it is."""
    return host if _is_address(host) else ".".join(host.rsplit(".", 2)[-2:])


def _is_address(host: str) -> bool:
    return ":" in host or host.replace(".", "").isdigit()
