"""``oss``: objects of an Aliyun bucket, requests signed in their headers with HMAC-SHA1."""

from __future__ import annotations

import hmac
from base64 import b64encode
from collections.abc import Mapping
from email.utils import formatdate
from ipaddress import ip_address
from types import MappingProxyType
from urllib.parse import quote

from nydus_fscache.backend.http_backend import HttpBackend
from nydus_fscache.config.http_options import take_http_options
from nydus_fscache.config.options import Options
from nydus_fscache.config.url import Url, parse_url
from nydus_fscache.errors import UsageError
from nydus_fscache.http.pool import PooledResponse
from nydus_fscache.http.route import RequestTemplate


def oss_signature(
    secret: str, method: str, headers: Mapping[str, str], date: str, resource: str
) -> str:
    """Base64 of the signature.  ``resource`` is /bucket/object; ``date`` the Date header."""
    lower = {name.lower(): value.strip() for name, value in headers.items()}
    own = sorted(name for name in lower if name.startswith("x-oss-"))
    lines = [method, lower.get("content-md5", ""), lower.get("content-type", ""), date]
    lines += [f"{name}:{lower[name]}" for name in own]
    text = "\n".join([*lines, resource])
    return b64encode(hmac.digest(secret.encode(), text.encode(), "sha1")).decode()


NO_QUERY: Mapping[str, str] = MappingProxyType({})


class Oss(HttpBackend):
    """Config: ``endpoint``, ``bucket_name``; ``object_prefix``, ``access_key_id``,
    ``access_key_secret``, and the common options."""

    name = "oss"

    def __init__(self, options: Options) -> None:
        endpoint, self._bucket = options.text("endpoint"), options.text("bucket_name")
        self._prefix = options.text("object_prefix", "")
        self._key_id = options.header_text("access_key_id", "")
        self._secret = options.text("access_key_secret", "")
        http = take_http_options(options)
        options.end()
        super().__init__(http)
        base = parse_url(f"{http.scheme}://{endpoint}", "oss.endpoint")
        if base.target != "/":
            raise UsageError(f"oss.endpoint is {endpoint!r}", hint="a host, or host:port")
        self._folder = "/"
        if _is_address(base.host):  # an address has no subdomains
            self._folder = f"/{quote(self._bucket, safe='')}/"
        else:
            base = parse_url(f"{http.scheme}://{self._bucket}.{endpoint}", "oss.bucket_name")
        self._base = base
        self.link = base.authority

    def write_request(
        self, method: str, name: str, query: Mapping[str, str] = NO_QUERY, payload_sha256: str = ""
    ) -> tuple[Url, dict[str, str]]:
        """URL and headers of a request that writes the object ``name``.

        ``query``: what the service calls sub-resources.
        """
        kind = {"Content-Type": "application/octet-stream"}
        words = "&".join(f"{k}={v}" if v else k for k, v in sorted(query.items()))
        escaped = "&".join(
            f"{k}={quote(v, safe='-_.~')}" if v else k for k, v in sorted(query.items())
        )
        url = self._url(name)
        url = url.with_target(f"{url.target}?{escaped}") if words else url
        named = f"{name}?{words}" if words else name
        return url, {**kind, **self._authorised(method, named, kind)}

    def fetch(self, blob_id: str, template: RequestTemplate) -> PooledResponse:
        def authorise() -> dict[str, str]:
            return self._authorised(template.method, blob_id, {})

        return self.routes.send(self._url(blob_id), template, authorise=authorise, blob_id=blob_id)

    def _url(self, blob_id: str) -> Url:
        target = self._folder + quote(self._prefix + blob_id, safe="/-_.~")
        return self._base.with_target(target)

    def _authorised(self, method: str, blob_id: str, more: Mapping[str, str]) -> dict[str, str]:
        headers = self.own_headers
        if not self._key_id:
            return headers
        date = formatdate(usegmt=True)
        resource = f"/{self._bucket}/{self._prefix}{blob_id}"
        signed = {**headers, **more}
        signature = oss_signature(self._secret, method, signed, date, resource)
        return {**headers, "Date": date, "Authorization": f"OSS {self._key_id}:{signature}"}


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
