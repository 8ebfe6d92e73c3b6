"""TLS contexts out of options: the system's authorities, and those that are configured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nydus_fscache.config.http_options import Tls
from nydus_fscache.errors import UsageError

if TYPE_CHECKING:
    import ssl

CERTIFICATE_HINT = (
    "its authority belongs in ca_cert_files, or, of a registry, in /etc/docker/certs.d/HOST/ca.crt"
    " (unsafe: skip_verify, --…-insecure)"
)
HANDSHAKE_HINT = (
    "does the server speak https? plain http must be asked for (scheme http, --plain-http)"
)


def tls_context(tls: Tls) -> ssl.SSLContext:
    """For clients, TLS 1.2 or later; ``UsageError`` when a file cannot be read."""
    import ssl  # noqa: PLC0415 - 3 MiB, and a registry on loopback needs none

    if tls.skip_verify:  # the system's authorities take 20 ms to load
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    else:
        context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if tls.skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    file = ""
    try:
        for file in tls.ca_cert_files:
            context.load_verify_locations(file)
        if tls.client_cert_file:
            file = tls.client_cert_file
            context.load_cert_chain(file, tls.client_key_file or None)
    except OSError as e:  # ssl.SSLError is one
        raise UsageError(f"cannot use {file}: {e}", hint="a PEM file is needed") from e
    return context
