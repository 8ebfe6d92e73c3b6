"""Nydus images out of Debian's docker-registry: found, verified, refused with the reason."""

from __future__ import annotations

import base64
import gzip
import io
import json
import random
import ssl
import subprocess
import sys
import tarfile
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import trustme
from rangeserver import RangeServer
from servers import (
    AUTH,
    OCI_INDEX,
    OCI_MANIFEST,
    Pusher,
    TokenServer,
    bootstrap_layer,
    docker_registry,
    nydus_manifest,
)

from nydus_fscache.backend.make import make_backend
from nydus_fscache.errors import BackendError, BadImage, UsageError
from nydus_fscache.registry.layer import extract_bootstrap
from nydus_fscache.registry.pull import pull_bootstrap

REPO = "team/app"
BOOT = random.Random(2).randbytes(100_000)
BLOBS = [random.Random(n).randbytes(50_000 + n) for n in range(3)]
NO_LOGIN = {"HOME": "/nonexistent"}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with docker_registry(tmp_path_factory.mktemp("registry")) as host:
        yield host


@pytest.fixture
def push(host: str) -> Iterator[Pusher]:
    with Pusher(host, REPO) as push:
        yield push


def pull(name: str):
    return pull_bootstrap(name, plain_http=True, environ=NO_LOGIN)


def test_by_tag_and_by_digest(host: str, push: Pusher) -> None:
    document = nydus_manifest(push, bootstrap_layer(BOOT), BLOBS)
    digest = push.manifest("v1", document)
    for name in (f"{host}/{REPO}:v1", f"{host}/{REPO}@{digest}", f"{host}/{REPO}:v1@{digest}"):
        pulled = pull(name)
        assert pulled.bootstrap == BOOT
        assert pulled.manifest_digest == digest
        assert pulled.reference == name
        assert list(pulled.blob_sizes.values()) == [len(blob) for blob in BLOBS]
    backend = make_backend(pulled.backend)
    try:
        for blob_id, blob in zip(pulled.blob_sizes, BLOBS, strict=True):
            assert backend.read(blob_id, 7, 70, deadline=time.monotonic() + 5) == blob[7:77]
    finally:
        backend.close()


_PULL = """
import sys
from nydus_fscache.registry.pull import pull_bootstrap
print(len(pull_bootstrap(sys.argv[1], plain_http=True, environ={}).bootstrap))
assert "requests" not in sys.modules, "0.1 s of each mount"
"""


def test_two_questions_and_few_modules(host: str, push: Pusher, tmp_path: Path) -> None:
    document = nydus_manifest(push, bootstrap_layer(BOOT), BLOBS)
    manifest, layer = json.dumps(document).encode(), document["layers"][-1]["digest"]
    (tmp_path / layer.removeprefix("sha256:")).write_bytes(bootstrap_layer(BOOT))

    def route(_: str, path: str, *__: object) -> tuple[int, dict[str, str], bytes] | None:
        return (200, {"Content-Type": OCI_MANIFEST}, manifest) if "manifests" in path else None

    with RangeServer(tmp_path, route=route) as server:
        name = f"127.0.0.1:{server.port}/{REPO}:v1"
        done = subprocess.run(
            [sys.executable, "-c", _PULL, name], capture_output=True, text=True, check=False
        )
        assert (done.stdout, done.stderr) == (f"{len(BOOT)}\n", "")
        asked = [(one.method, one.path) for one in server.seen]
    assert asked == [
        ("GET", f"/v2/{REPO}/manifests/v1"), ("GET", f"/v2/{REPO}/blobs/{layer}"),
    ]  # fmt: skip


def test_index_names_the_nydus_image_of_this_machine(host: str, push: Pusher) -> None:
    import platform

    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    nydus = nydus_manifest(push, bootstrap_layer(BOOT), BLOBS)
    plain = {**nydus, "layers": nydus["layers"][:1]}
    entries = []
    for document, arch, features in [
        (plain, machine, None),
        (plain, "s390x", ["nydus.remoteimage.v1"]),
        (nydus, machine, ["nydus.remoteimage.v1"]),
    ]:
        where = {"os": "linux", "architecture": arch}
        if features:
            where["os.features"] = features
        digest = push.manifest(f"part-{len(entries)}", document)
        size = len(json.dumps(document))
        entries.append(
            {"mediaType": OCI_MANIFEST, "digest": digest, "size": size, "platform": where}
        )
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    push.manifest("multi", index)
    pulled = pull(f"{host}/{REPO}:multi")
    assert pulled.bootstrap == BOOT
    assert pulled.manifest_digest == entries[2]["digest"]

    push.manifest("foreign", {**index, "manifests": entries[1:2]})
    with pytest.raises(BadImage, match="no image for linux/") as caught:
        pull(f"{host}/{REPO}:foreign")
    assert "s390x" in (caught.value.hint or "")


def test_refused_with_the_reason(host: str, push: Pusher) -> None:
    good = nydus_manifest(push, bootstrap_layer(BOOT), BLOBS)
    last = good["layers"][-1]

    def with_last(**changes: object) -> dict[str, object]:
        return {**good, "layers": [*good["layers"][:-1], {**last, **changes}]}

    cases = [
        ({**good, "layers": good["layers"][:-1]}, "not a Nydus image"),
        (
            with_last(
                annotations={**last["annotations"], "containerd.io/snapshot/nydus-fs-version": "5"}
            ),
            "RAFS v5",
        ),
        (with_last(size=last["size"] + 1), "by the manifest"),
        (with_last(digest=good["layers"][0]["digest"], size=len(BLOBS[0])), "damaged"),
    ]
    for number, (document, message) in enumerate(cases):
        push.manifest(f"bad-{number}", document)
        with pytest.raises(BadImage, match=message):
            pull(f"{host}/{REPO}:bad-{number}")
    with pytest.raises(BackendError, match=r"manifest team/app:none: .* answers 404"):
        pull(f"{host}/{REPO}:none")


def test_what_a_faulty_registry_sends_is_noticed(tmp_path: Path) -> None:
    layer = bootstrap_layer(BOOT)
    documents: dict[str, bytes] = {}

    def route(
        method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes] | None:
        if "/manifests/" in path:
            return 200, {"Content-Type": OCI_MANIFEST}, documents["manifest"]
        return None

    with RangeServer(tmp_path, route=route) as server:
        name = f"{server.host}/a"
        documents["manifest"] = b'{"layers": []}'
        with pytest.raises(BadImage, match="manifest with digest"):
            pull(f"{name}@sha256:{'0' * 64}")
        (tmp_path / ("1" * 64)).write_bytes(layer)
        descriptor = {
            "digest": f"sha256:{'1' * 64}",
            "size": len(layer),
            "annotations": {"containerd.io/snapshot/nydus-bootstrap": "true"},
        }
        documents["manifest"] = json.dumps({"layers": [descriptor]}).encode()
        with pytest.raises(BadImage, match="does not match its digest"):
            pull(name)
        for document in (
            b"",
            b"[]",
            b"[" * 100_000,
            b"{}",
            b'{"layers": 5}',
            b'{"layers": [{"digest": "md5:0"}]}',
            json.dumps({"layers": [{**descriptor, "size": -1}]}).encode(),
            json.dumps({"layers": [{**descriptor, "size": 1 << 61}]}).encode(),
        ):
            documents["manifest"] = document
            with pytest.raises(BadImage):
                pull(name)
        documents["manifest"] = b" " * (9 << 20)
        with pytest.raises(BackendError, match="more than"):
            pull(name)


def test_private_registry_with_docker_login(tmp_path: Path) -> None:
    tokens = TokenServer(tmp_path)
    with tokens.run() as realm, docker_registry(tmp_path, tokens.config(realm)) as host:
        bearer = {"Authorization": f"Bearer {tokens.jwt(REPO, ['pull', 'push'])}"}
        with Pusher(host, REPO, bearer) as push:
            push.nydus_image("v1", BOOT, BLOBS)
        login = tmp_path / "config.json"
        login.write_text(json.dumps({"auths": {host: {"auth": AUTH}}}))
        environ = {"DOCKER_CONFIG": str(tmp_path)}
        pulled = pull_bootstrap(f"{host}/{REPO}:v1", plain_http=True, environ=environ)
        assert pulled.bootstrap == BOOT
        assert AUTH not in repr(pulled)
        environ = {"IMAGE_PULL_AUTH": base64.b64encode(b"alice:guess").decode()}
        with pytest.raises(BackendError, match="401"):
            pull_bootstrap(f"{host}/{REPO}:v1", plain_http=True, environ=environ)


def tar_of(name: str, data: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.size, member.type = len(data), kind
        tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def test_layers_of_all_kinds() -> None:
    plain = tar_of("image/image.boot", BOOT)
    members = gzip.compress(plain[:5000]) + gzip.compress(plain[5000:])
    for layer in (plain, gzip.compress(plain), members, tar_of("./image/image.boot", BOOT)):
        assert extract_bootstrap(layer) == BOOT


def test_layers_that_are_wrong() -> None:
    packed = gzip.compress(tar_of("image/image.boot", BOOT))
    for layer in (
        b"",
        b"no tar at all" * 100,
        packed[: len(packed) // 2],
        packed[:100] + b"\xff" * 50 + packed[150:],
        tar_of("image/image.boot", BOOT)[:50_000],
        tar_of("image/other", BOOT),
        tar_of("image/image.boot", b""),
        tar_of("image/image.boot", b"", tarfile.SYMTYPE),
    ):
        with pytest.raises(BadImage):
            extract_bootstrap(layer)


def test_bomb() -> None:
    bomb = gzip.compress(tar_of("image/filler", bytes(200 << 20)), 9)
    started = time.monotonic()
    with pytest.raises(BadImage, match="far too much"):
        extract_bootstrap(bomb)
    assert time.monotonic() - started < 5


def long_header(kind: bytes, size: int) -> bytes:
    """A layer whose first member claims a header of ``size`` bytes, all of them there."""
    member = tarfile.TarInfo("x")
    member.type, member.size = kind, size
    packed = zlib.compressobj(9, wbits=31)
    out = packed.compress(member.tobuf())
    for _ in range(size >> 20):
        out += packed.compress(bytes(1 << 20))
    return out + packed.flush()


@pytest.mark.parametrize(
    "kind",
    [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK],
)
def test_headers_that_claim_memory(kind: bytes) -> None:
    layer = long_header(kind, 40 << 20) + random.Random(1).randbytes(800_000)
    tracemalloc.start()
    try:
        with pytest.raises(BadImage, match="a header of 41943040 bytes"):
            extract_bootstrap(layer)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_a_million_members() -> None:
    member = tarfile.TarInfo("x").tobuf()
    layer = gzip.compress(member * 110_000, 1)
    with pytest.raises(BadImage, match=r"more than 100000 members|far too much"):
        extract_bootstrap(layer)


def test_a_bootstrap_that_was_cheap_to_store() -> None:
    bomb = gzip.compress(tar_of("image/image.boot", bytes(100 << 20)), 9)
    tracemalloc.start()
    try:
        with pytest.raises(BadImage, match="a bootstrap of 104857600 bytes"):
            extract_bootstrap(bomb)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_around_the_bootstrap(form: int) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        directory = tarfile.TarInfo("image")
        directory.type = tarfile.DIRTYPE
        tar.addfile(directory)
        long = "d/" * 60 + "name" if form == tarfile.USTAR_FORMAT else "n" * 300
        for name in (long, "image/ä.blob.meta", "image/a"):
            other = tarfile.TarInfo(name)
            other.size = 1000
            other.mtime = 1.5 if form == tarfile.PAX_FORMAT else 1
            tar.addfile(other, io.BytesIO(bytes(1000)))
        link = tarfile.TarInfo("image/link")
        link.type, link.linkname = tarfile.SYMTYPE, "t" * 300 if form else "t"
        tar.addfile(link)
        boot = tarfile.TarInfo("image/image.boot")
        boot.size = len(BOOT)
        boot.pax_headers = {"comment": "x" * 600}
        tar.addfile(boot, io.BytesIO(BOOT))
    assert extract_bootstrap(gzip.compress(out.getvalue())) == BOOT


@pytest.mark.parametrize(
    "records", [b"junk\n", b"5 a=b\n", b"999999 path=x\n", b"12 path=x\n", b"00 =\n", b"9" * 300]
)
def test_pax_records_that_lie(records: bytes) -> None:
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, len(records)
    layer = header.tobuf() + records.ljust(512, b"\0") + tar_of("image/image.boot", BOOT)
    with pytest.raises(BadImage, match="pax header"):
        extract_bootstrap(layer)


@pytest.fixture
def tls(tmp_path: Path) -> tuple[ssl.SSLContext, str]:
    """A server's context for localhost, and the PEM file of its authority."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    pem = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(pem))
    return context, str(pem)


def front_of(host: str) -> Any:
    """A route that passes everything on to a registry."""

    def route(
        method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        path = path.partition(REPO)[2]  # a proxy is asked for the whole URL
        with requests.Session() as session:
            session.trust_env = False
            kept = {k: v for k, v in headers.items() if k in ("Range", "Accept")}
            answer = session.request(method, f"http://{host}/v2/{REPO}{path}", headers=kept)
        names = ("Content-Type", "Content-Range", "Content-Length")
        kept = {name: answer.headers[name] for name in names if name in answer.headers}
        return answer.status_code, kept, answer.content

    return route


def test_options_of_the_backend_count_for_pulling(
    host: str, push: Pusher, tmp_path: Path, tls: tuple[ssl.SSLContext, str]
) -> None:
    push.nydus_image("options", BOOT, BLOBS)
    context, pem = tls
    with RangeServer(tmp_path, tls=context, route=front_of(host)) as server:
        name = f"localhost:{server.port}/{REPO}:options"
        with pytest.raises(BackendError, match="certificate refused"):
            pull_bootstrap(name, environ=NO_LOGIN)
        for options in ({"ca_cert_files": [pem]}, {"skip_verify": True}):
            pulled = pull_bootstrap(name, options=options, environ=NO_LOGIN)
            assert pulled.bootstrap == BOOT
            table = pulled.backend["registry"]
            assert table["scheme"] == "https"  # found out, and told to the daemon
            assert options.items() <= table.items()
            backend = make_backend(pulled.backend)
            blob_id = next(iter(pulled.blob_sizes))
            assert backend.read(blob_id, 0, 9, deadline=time.monotonic() + 5) == BLOBS[0][:9]
            backend.close()
        with pytest.raises(UsageError, match="no option ca_cert"):
            pull_bootstrap(name, options={"ca_cert": [pem]}, environ=NO_LOGIN)


def test_pull_through_the_proxy_of_the_backend(host: str, push: Pusher, tmp_path: Path) -> None:
    push.nydus_image("proxy", BOOT, BLOBS)
    with RangeServer(tmp_path, route=front_of(host)) as proxy:
        options = {"scheme": "http", "proxy": {"url": proxy.url, "fallback": False}}
        pulled = pull_bootstrap(f"r.invalid/{REPO}:proxy", options=options, environ=NO_LOGIN)
        assert pulled.bootstrap == BOOT
        assert {seen.path.partition("/v2/")[0] for seen in proxy.seen} == {"http://r.invalid"}


def test_headers_and_credentials_of_the_backend_count(
    host: str, push: Pusher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push.nydus_image("auth", BOOT, BLOBS)
    monkeypatch.setenv("NYDUS_HEADER_X-Tenant", "t")
    passed = front_of(host)

    def route(
        method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        if headers.get("Authorization") != f"Basic {AUTH}" or headers.get("X-Tenant") != "t":
            return 401, {"WWW-Authenticate": "Negotiate, Basic"}, b""
        answer: tuple[int, dict[str, str], bytes] = passed(method, path, headers, body)
        return answer

    with RangeServer(tmp_path, route=route) as server:
        name = f"{server.host}/{REPO}:auth"
        assert pull_bootstrap(name, options={"auth": AUTH}, environ=NO_LOGIN).bootstrap == BOOT


def test_loopback_needs_no_option(host: str, push: Pusher) -> None:
    push.nydus_image("here", BOOT, BLOBS)
    for name in (host, host.replace("127.0.0.1", "localhost")):
        pulled = pull_bootstrap(f"{name}/{REPO}:here", environ=NO_LOGIN)
        assert pulled.bootstrap == BOOT
        assert pulled.backend["registry"]["scheme"] == "http"


def test_blobs_from_another_host_than_the_image(host: str, push: Pusher) -> None:
    push.nydus_image("far", BOOT, BLOBS)
    options = {"host": "mirror.example", "repo": "other/app", "auth": AUTH}
    pulled = pull_bootstrap(f"{host}/{REPO}:far", options=options, environ=NO_LOGIN)
    assert pulled.bootstrap == BOOT
    assert pulled.backend["registry"] == options
