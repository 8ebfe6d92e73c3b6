"""The registry's client against Debian's docker-registry: pushes, uploads, what is refused."""

from __future__ import annotations

import hashlib
import io
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rangeserver import RangeServer
from servers import AUTH, OCI_MANIFEST, TokenServer, docker_registry, htpasswd_auth

from nydus_fscache.config.http_options import HttpOptions
from nydus_fscache.errors import BackendError, BadImage
from nydus_fscache.http.call import Upload
from nydus_fscache.registry.client import RegistryClient
from nydus_fscache.registry.manifest import Descriptor

HTTP = HttpOptions(scheme="http", retries=1)
DATA = random.Random(3).randbytes(300_000)
DIGEST = f"sha256:{hashlib.sha256(DATA).hexdigest()}"
MANIFEST = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST}).encode()


def soon() -> float:
    return time.monotonic() + 20


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with docker_registry(tmp_path_factory.mktemp("registry")) as host:
        yield host


@pytest.mark.parametrize("chunk", [0, 100_000])
def test_upload_and_read_back(host: str, chunk: int) -> None:
    repo = f"up/{chunk}"
    with RegistryClient(host, HTTP) as client:
        assert client.blob_size(repo, DIGEST, deadline=soon()) is None
        body = Upload(lambda: io.BytesIO(DATA), len(DATA))
        client.upload_blob(repo, DIGEST, body, deadline=soon(), chunk=chunk)
        assert client.blob_size(repo, DIGEST, deadline=soon()) == len(DATA)
        layer = Descriptor("", DIGEST, len(DATA), {})
        assert client.blob(repo, layer, limit=1 << 20, deadline=soon()) == DATA
        with client.open_blob(repo, DIGEST, 7, 70, deadline=soon()) as stream:
            buf = memoryview(bytearray(100))
            assert stream.readinto(buf) == 70
            assert bytes(buf[:70]) == DATA[7:77]
        with pytest.raises(BadImage, match="are allowed"):
            client.blob(repo, layer, limit=1000, deadline=soon())


def test_empty_blob(host: str) -> None:
    empty = f"sha256:{hashlib.sha256(b'').hexdigest()}"
    with RegistryClient(host, HTTP) as client:
        client.upload_blob("up/empty", empty, b"", deadline=soon())
        assert client.blob_size("up/empty", empty, deadline=soon()) == 0


def test_a_blob_is_taken_over_from_another_repository(host: str) -> None:
    with RegistryClient(host, HTTP) as client:
        client.upload_blob("from/a", DIGEST, DATA, deadline=soon())
        assert client.mount_blob("to/b", DIGEST, "from/a", deadline=soon())
        assert client.blob_size("to/b", DIGEST, deadline=soon()) == len(DATA)
        nowhere = f"sha256:{'0' * 64}"
        assert not client.mount_blob("to/b", nowhere, "from/a", deadline=soon())


def test_wrong_digest_is_refused_with_the_registrys_words(host: str) -> None:
    with RegistryClient(host, HTTP) as client:
        with pytest.raises(BackendError, match=r"answers 400: provided digest") as caught:
            client.upload_blob("up/bad", f"sha256:{'0' * 64}", DATA, deadline=soon())
        assert caught.value.status == 400


def test_manifests(host: str) -> None:
    config = b"{}"
    blob = f"sha256:{hashlib.sha256(config).hexdigest()}"
    with RegistryClient(host, HTTP) as client:
        client.upload_blob("m", blob, config, deadline=soon())
        document = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": "application/x", "digest": blob, "size": len(config)},
            "layers": [],
        }
        body = json.dumps(document).encode()
        assert client.manifest_digest("m", "v1", deadline=soon()) is None
        digest = client.put_manifest("m", "v1", body, OCI_MANIFEST, deadline=soon())
        assert digest == f"sha256:{hashlib.sha256(body).hexdigest()}"
        assert client.manifest_digest("m", "v1", deadline=soon()) == digest
        for name in ("v1", digest):
            found = client.manifest("m", name, deadline=soon())
            assert (found.body, found.media_type, found.digest) == (body, OCI_MANIFEST, digest)
        with pytest.raises(BackendError, match="answers 404"):
            client.manifest("m", "v2", deadline=soon())
        with pytest.raises(BackendError, match=r"answers 400|answers 404"):
            client.put_manifest("m", "v3", b"nonsense", OCI_MANIFEST, deadline=soon())


def test_push_with_basic(tmp_path: Path) -> None:
    with docker_registry(tmp_path, htpasswd_auth(tmp_path)) as host:
        with RegistryClient(host, HTTP, auth=AUTH) as client:
            client.upload_blob("a", DIGEST, DATA, deadline=soon())
            assert client.blob_size("a", DIGEST, deadline=soon()) == len(DATA)
        with RegistryClient(host, HTTP) as client:
            with pytest.raises(BackendError, match="answers 401") as caught:
                client.upload_blob("a", DIGEST, DATA, deadline=soon())
            assert "docker login" in (caught.value.hint or "")


@pytest.mark.parametrize("post", [True, False])
def test_push_with_tokens(tmp_path: Path, post: bool) -> None:
    tokens = TokenServer(tmp_path, allow_post=post)
    with (
        tokens.run() as realm,
        docker_registry(tmp_path, tokens.config(realm)) as host,
        RegistryClient(host, HTTP, auth=AUTH) as client,
    ):
        body = Upload(lambda: io.BytesIO(DATA), len(DATA))
        client.upload_blob("a/b", DIGEST, body, deadline=soon(), chunk=100_000)
        client.upload_blob("a/b", DIGEST, body, deadline=soon())
        assert client.blob_size("a/b", DIGEST, deadline=soon()) == len(DATA)
        assert client.mount_blob("a/c", DIGEST, "a/b", deadline=soon())
    assert len(tokens.asked) <= (3 if post else 6)


def test_an_upload_elsewhere_gets_no_credentials(tmp_path: Path) -> None:
    def storage(
        method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        return 201, {}, b""

    def registry(
        method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        if headers.get("Authorization") != f"Basic {AUTH}":
            return 401, {"WWW-Authenticate": "Negotiate, Basic"}, b""
        return 202, {"Location": f"{store.url}/put?sig=1"}, b""

    with RangeServer(tmp_path, route=storage) as store:
        with (
            RangeServer(tmp_path, route=registry) as server,
            RegistryClient(server.host, HTTP, auth=AUTH) as client,
        ):
            client.upload_blob("a", DIGEST, DATA, deadline=soon())
        (put,) = store.seen
        assert put.method == "PUT"
        assert put.path == f"/put?sig=1&digest={DIGEST.replace(':', '%3A')}"
        assert "Authorization" not in put.headers
