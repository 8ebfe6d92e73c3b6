"""Real servers for tests: Debian's docker-registry, a token server, images to push.

Everything listens on the loopback on a port that was free, writes below a
directory of the test, and is gone when its context ends.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urljoin

import pytest
import requests
from rangeserver import RangeServer

USER, PASSWORD = "alice", "open:sesame"  # with a colon: only the first one separates
AUTH = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
_BCRYPT = "$2b$04$tzhl/eFGWtNz1EW6Q.KCuOm.CCxW4GrRTfzgkgBTzYNmywsHR7Hyy"  # of PASSWORD
OTHER_AUTH = base64.b64encode(f"{USER}:second".encode()).decode()
_OTHER_BCRYPT = "$2b$04$mWNNuGy1kmcBppIGZzMkQ.R4Rcc0PWc098mUSqclTEH7M4hw0MJja"  # of "second"

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def docker_registry(
    directory: Path, auth: Mapping[str, Any] | None = None, tls: tuple[Path, Path] | None = None
) -> Iterator[str]:
    """Debian's registry; yields host:port.  ``auth``: that section of its configuration;
    ``tls``: certificate and key."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("docker-registry is not installed: apt-get install docker-registry")
    port = free_port()
    config = {
        "version": 0.1,
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(directory / "registry")}},
        "http": {
            "addr": f"127.0.0.1:{port}",
            **({"tls": {"certificate": str(tls[0]), "key": str(tls[1])}} if tls else {}),
        },
        **({"auth": auth} if auth else {}),
    }
    file = directory / f"registry-{port}.yml"
    file.write_text(json.dumps(config))  # YAML is a superset
    with serving([program, "serve", str(file)], port, directory / f"registry-{port}.log") as host:
        yield host


@contextmanager
def olareg(program: str, directory: Path) -> Iterator[str]:
    """A registry with a referrers API, by ``scripts/peers``; yields host:port."""
    port = free_port()
    words = ["serve", "--addr", "127.0.0.1", "--port", str(port), "--dir", str(directory / "root")]
    (directory / "root").mkdir()
    with serving([program, *words], port, directory / "olareg.log") as host:
        yield host


@contextmanager
def moto_server(directory: Path) -> Iterator[str]:
    """An S3 and IAM server; yields host:port."""
    port, code = free_port(), "from moto.server import main; main()"
    command = [sys.executable, "-c", code, "-H", "127.0.0.1", "-p", str(port)]
    with serving(command, port, directory / "log") as host:
        yield host


@contextmanager
def serving(command: Sequence[str], port: int, log: Path) -> Iterator[str]:
    """Yields host:port when it listens; ends it."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        wait_for_port(port, process, log)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise AssertionError(f"nothing listens on {port}: {log.read_text()}")


def change_password(directory: Path, *, other: bool) -> None:
    """From now on ``htpasswd_auth`` accepts ``OTHER_AUTH``, or ``AUTH`` again."""
    file = directory / "htpasswd"
    before = file.stat().st_mtime
    file.write_text(f"{USER}:{_OTHER_BCRYPT if other else _BCRYPT}\n")
    os.utime(file, (before + 10, before + 10))  # how the registry sees that it is another


def htpasswd_auth(directory: Path) -> dict[str, Any]:
    file = directory / "htpasswd"
    file.write_text(f"{USER}:{_BCRYPT}\n")
    return {"htpasswd": {"realm": "test", "path": str(file)}}


class Pusher:
    """Uploads to a registry with ``requests``, so that nothing of ours checks itself."""

    def __init__(
        self, host: str, repo: str, headers: Mapping[str, str] | None = None, *,
        ca: Path | None = None,
    ) -> None:  # fmt: skip
        """``ca``: of a registry that speaks TLS."""
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.verify = str(ca) if ca else True
        self._session.headers.update(headers or {})
        self._base = f"{'https' if ca else 'http'}://{host}/v2/{repo}"

    def __enter__(self) -> Pusher:
        return self

    def __exit__(self, *exc: object) -> None:
        self._session.close()

    def blob(self, data: bytes) -> str:
        """Its digest as hex."""
        digest = hashlib.sha256(data).hexdigest()
        start = self._session.post(f"{self._base}/blobs/uploads/")
        start.raise_for_status()
        done = self._session.put(
            urljoin(start.url, start.headers["Location"]), params={"digest": f"sha256:{digest}"},
            data=data,
        )  # fmt: skip
        done.raise_for_status()
        return digest

    def manifest(self, name: str, document: Mapping[str, Any]) -> str:
        """Its digest, sha256:hex."""
        body = json.dumps(document).encode()
        done = self._session.put(
            f"{self._base}/manifests/{name}",
            data=body,
            headers={"Content-Type": document["mediaType"]},
        )
        done.raise_for_status()
        return f"sha256:{hashlib.sha256(body).hexdigest()}"

    def nydus_image(
        self, tag: str, bootstrap: bytes, blobs: Mapping[str, bytes] | list[bytes]
    ) -> dict[str, Any]:
        """Push it; returns the manifest."""
        contents = list(blobs.values()) if isinstance(blobs, Mapping) else blobs
        document = nydus_manifest(self, bootstrap_layer(bootstrap), contents)
        self.manifest(tag, document)
        return document


def bootstrap_layer(bootstrap: bytes) -> bytes:
    """The tar.gz that converters make."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        directory = tarfile.TarInfo("image")
        directory.type = tarfile.DIRTYPE
        tar.addfile(directory)
        member = tarfile.TarInfo("image/image.boot")
        member.size = len(bootstrap)
        tar.addfile(member, io.BytesIO(bootstrap))
    return gzip.compress(out.getvalue(), 1)


def nydus_manifest(
    push: Pusher, layer: bytes, blobs: list[bytes], command: Sequence[str] = ()
) -> dict[str, Any]:
    """``command``: of the image's containers."""
    tar = gzip.decompress(layer) if layer[:2] == b"\x1f\x8b" else layer
    digests = [hashlib.sha256(data).hexdigest() for data in (*blobs, tar)]
    rootfs = {"type": "layers", "diff_ids": [f"sha256:{digest}" for digest in digests]}
    document = {"architecture": "amd64", "os": "linux", "rootfs": rootfs}
    config = json.dumps({**document, "config": {"Cmd": list(command)}}).encode()
    layers: list[dict[str, Any]] = [
        {
            "mediaType": "application/vnd.oci.image.layer.nydus.blob.v1",
            "digest": f"sha256:{push.blob(blob)}",
            "size": len(blob),
            "annotations": {"containerd.io/snapshot/nydus-blob": "true"},
        }
        for blob in blobs
    ]
    layers.append(
        {
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
            "digest": f"sha256:{push.blob(layer)}",
            "size": len(layer),
            "annotations": {
                "containerd.io/snapshot/nydus-bootstrap": "true",
                "containerd.io/snapshot/nydus-fs-version": "6",
            },
        }
    )
    return {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": f"sha256:{push.blob(config)}",
            "size": len(config),
        },
        "layers": layers,
    }


@dataclass
class TokenServer:
    """What a registry's ``auth.token`` realm does: JWTs signed with a key that it trusts."""

    directory: Path
    ttl_s: int = 300
    allow_post: bool = True
    password: str = PASSWORD
    asked: list[str] = field(default_factory=list)  # the methods of the requests, in order

    def __post_init__(self) -> None:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import NameOID

        self._key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "token server")])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self._key.public_key())
            .serial_number(1)
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=1))
            .sign(self._key, hashes.SHA256())
        )
        self._der = certificate.public_bytes(serialization.Encoding.DER)
        self.bundle = self.directory / "token.pem"
        self.bundle.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def config(self, realm: str) -> dict[str, Any]:
        return {
            "token": {
                "realm": f"{realm}/token",
                "service": "test registry",
                "issuer": "test issuer",
                "rootcertbundle": str(self.bundle),
            }
        }

    def jwt(self, repo: str, actions: list[str], ttl_s: int | None = None) -> str:
        return self._jwt([(repo, actions)], ttl_s)

    def _jwt(self, scopes: list[tuple[str, list[str]]], ttl_s: int | None = None) -> str:
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

        now = int(time.time())
        header = {"typ": "JWT", "alg": "ES256", "x5c": [base64.b64encode(self._der).decode()]}
        claims = {
            "iss": "test issuer",
            "sub": USER,
            "aud": "test registry",
            "exp": now + (ttl_s or self.ttl_s),
            "nbf": now - 60,
            "iat": now,
            "jti": f"{len(self.asked)}",
            "access": [
                {"type": "repository", "name": repo, "actions": actions}
                for repo, actions in scopes
            ],
        }
        text = b".".join(_b64(json.dumps(part).encode()) for part in (header, claims))
        r, s = decode_dss_signature(self._key.sign(text, ec.ECDSA(hashes.SHA256())))
        return (text + b"." + _b64(r.to_bytes(32, "big") + s.to_bytes(32, "big"))).decode()

    def route(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        self.asked.append(method)
        if method == "POST" and not self.allow_post:
            return 405, {}, b""
        query = parse_qs(body.decode() if method == "POST" else path.partition("?")[2])
        auth = base64.b64encode(f"{USER}:{self.password}".encode()).decode()
        if headers.get("Authorization") != f"Basic {auth}":
            return 401, {}, b"who are you?"
        scopes = []
        for scope in " ".join(query["scope"]).split():
            kind, repo, actions = scope.split(":")
            assert kind == "repository"
            scopes.append((repo, actions.split(",")))
        token = self._jwt(scopes)
        answer = json.dumps({"token": token, "expires_in": self.ttl_s}).encode()
        return 200, {"Content-Type": "application/json"}, answer

    @contextmanager
    def run(self, tls: ssl.SSLContext | None = None) -> Iterator[str]:
        """Yields its URL."""
        with RangeServer(self.directory, route=self.route, tls=tls) as server:
            yield server.url


def _b64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
