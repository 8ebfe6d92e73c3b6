"""TLS: an own authority, client certificates, and what must be refused."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
import trustme
from backend_kit import Make, soon
from rangeserver import Fault, RangeServer

from nydus_fscache.errors import BackendError


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> str:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return str(tmp_path / "ca.pem")


def server_context(authority: trustme.CA, name: str = "127.0.0.1") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


def test_own_authority(
    authority: trustme.CA, ca_file: str, blobs: Path, make: Make, data: bytes, blob_id: str
) -> None:
    with RangeServer(blobs, tls=server_context(authority)) as server:
        backend = make("registry", host=server.host, repo="a", ca_cert_files=[ca_file])
        assert backend.read(blob_id, 0, len(data), deadline=soon()) == data
        server.faults.append(Fault(reset=True, after=100_000))
        assert backend.read(blob_id, 0, len(data), deadline=soon()) == data

        unknown = make("registry", host=server.host, repo="a")
        with pytest.raises(BackendError, match="certificate refused") as caught:
            unknown.size(blob_id, deadline=soon())
        assert "ca_cert_files" in (caught.value.hint or "")

        careless = make("registry", host=server.host, repo="a", skip_verify=True)
        assert careless.size(blob_id, deadline=soon()) == len(data)


def test_certificate_of_another_host(
    authority: trustme.CA, ca_file: str, blobs: Path, make: Make, blob_id: str
) -> None:
    with RangeServer(blobs, tls=server_context(authority, "other.example")) as server:
        backend = make("registry", host=server.host, repo="a", ca_cert_files=[ca_file])
        with pytest.raises(BackendError, match="certificate refused"):
            backend.size(blob_id, deadline=soon())


def test_client_certificate(
    authority: trustme.CA,
    ca_file: str,
    blobs: Path,
    make: Make,
    blob_id: str,
    tmp_path: Path,
    data: bytes,
) -> None:
    context = server_context(authority)
    context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(context)
    ours = authority.issue_cert("client@example.com")
    certificate, key = tmp_path / "client.pem", tmp_path / "client.key"
    ours.cert_chain_pems[0].write_to_path(str(certificate))
    ours.private_key_pem.write_to_path(str(key))
    with RangeServer(blobs, tls=context) as server:
        options = {"host": server.host, "repo": "a", "ca_cert_files": [ca_file], "retry_limit": 1}
        with pytest.raises(BackendError):
            make("registry", **options).size(blob_id, deadline=soon())
        backend = make(
            "registry", client_cert_file=str(certificate), client_key_file=str(key), **options
        )
        assert backend.size(blob_id, deadline=soon()) == len(data)


def test_http_is_never_tried_unasked(blobs: Path, make: Make, blob_id: str) -> None:
    with RangeServer(blobs) as server:
        for skip in (False, True):
            backend = make("registry", host=server.host, repo="a", skip_verify=skip)
            with pytest.raises(BackendError, match="TLS") as caught:
                backend.size(blob_id, deadline=soon(3))
            assert "http must be asked for" in (caught.value.hint or "")
        assert not server.seen


def test_redirect_from_https_to_http_is_refused(
    authority: trustme.CA, ca_file: str, blobs: Path, make: Make, data: bytes, blob_id: str
) -> None:
    with RangeServer(blobs) as store:

        def route(*_: object) -> tuple[int, dict[str, str], bytes]:
            return 307, {"Location": f"{store.url}/{blob_id}"}, b""

        with RangeServer(blobs, tls=server_context(authority), route=route) as server:
            options = {"host": server.host, "repo": "a", "ca_cert_files": [ca_file]}
            with pytest.raises(BackendError, match="unencrypted"):
                make("registry", **options).read(blob_id, 0, 5, deadline=soon())
            assert not store.seen
            asked_for = make("registry", blob_url_scheme="http", **options)
            assert asked_for.read(blob_id, 0, 5, deadline=soon()) == data[:5]


def test_token_realm_over_http_is_refused(
    authority: trustme.CA, ca_file: str, blobs: Path, make: Make, blob_id: str
) -> None:
    with RangeServer(blobs) as realm:

        def route(*_: object) -> tuple[int, dict[str, str], bytes]:
            challenge = f'Bearer realm="{realm.url}/token",service="s"'
            return 401, {"WWW-Authenticate": challenge}, b""

        with RangeServer(blobs, tls=server_context(authority), route=route) as server:
            backend = make(
                "registry", host=server.host, repo="a", ca_cert_files=[ca_file], auth="YTpi"
            )
            with pytest.raises(BackendError, match="unencrypted"):
                backend.size(blob_id, deadline=soon())
        assert not realm.seen
