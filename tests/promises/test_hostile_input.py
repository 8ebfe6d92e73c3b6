"""Whatever comes in by the API, a configuration or a state file is refused in our own words."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rig import Rig

from nydus_fscache.backend.make import make_backend
from nydus_fscache.errors import CacheDirError, FscacheError
from nydus_fscache.handover import state

FEW = settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
KINDS = ("registry", "s3", "oss", "http-proxy", "localfs", "localdisk")
OPTIONS = (
    "host", "repo", "auth", "registry_token", "blob_url_scheme", "scheme", "dir", "blob_file",
    "alt_dirs", "addr", "path", "endpoint", "bucket_name", "region", "proxy", "mirrors",
    "timeout", "retry_limit", "ca_cert_files", "device_path", "skip_verify",
)  # fmt: skip


@FEW
@given(kind=st.sampled_from(KINDS), options=st.dictionaries(st.sampled_from(OPTIONS), JSON))
def test_backend_configuration(kind: str, options: dict[str, Any]) -> None:
    for config in ({"type": kind, kind: options}, {"type": kind, **options}, options):
        with contextlib.suppress(FscacheError):
            make_backend(config).close()


_BINDING = {
    "digest": "0" * 64,
    "backend": {"type": "localfs", "localfs": {"dir": "/"}},
    "transport": "fanotify",
    "address": {},
    "mountpoint": "/mnt",
    "source": "x",
}


_OLD_BINDING = {n: v for n, v in _BINDING.items() if n != "address"} | {"fsid": "", "domain": ""}


@FEW
@given(field=st.sampled_from([*_BINDING, "version", "numbers", "bindings"]), value=JSON)
def test_state_of_a_predecessor(tmp_path: Path, field: str, value: Any) -> None:
    _check_state(tmp_path, state.VERSION, _BINDING, field, value)


@FEW
@given(field=st.sampled_from([*_OLD_BINDING, "numbers", "bindings"]), value=JSON)
def test_state_of_version_1(tmp_path: Path, field: str, value: Any) -> None:
    _check_state(tmp_path, 1, _OLD_BINDING, field, value)


def test_names_of_version_1_are_an_address(tmp_path: Path) -> None:
    old = [_OLD_BINDING, {**_OLD_BINDING, "fsid": "f", "domain": "d"}]
    document = {"version": 1, "numbers": {}, "bindings": old}
    loaded = state.parse(document, "it", "hint")
    assert [b.address for b in loaded.bindings] == [{}, {"fsid": "f", "domain": "d"}]


def _check_state(
    tmp_path: Path, version: int, binding: dict[str, Any], field: str, value: Any
) -> None:
    document: dict[str, Any] = {"version": version, "numbers": {"a": 1}}
    document["bindings"] = [{**binding, field: value} if field in binding else binding]
    if field not in binding:
        document[field] = value
    path = tmp_path / "state.json"
    path.write_text(json.dumps(document))
    try:
        loaded = state.load(path)
    except CacheDirError:
        return
    loaded.save(path)
    assert state.load(path) == loaded


@FEW
@given(data=st.binary(max_size=200))
def test_state_that_is_no_json(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(data)
    with contextlib.suppress(CacheDirError):
        state.load(path)


class _Unix(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=20)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20)
        self.sock.connect(str(self._path))


def _call(root: Path, method: str, target: str, body: bytes) -> tuple[int, Any]:
    connection = _Unix(root / "api.sock")
    try:
        connection.request(method, target, body)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def test_api_bodies(rig: Rig, golden: Path) -> None:
    image = golden / "images" / "one-lz4"
    mount = rig.mount(image / "image.boot", image / "blobs")
    fields = ("bootstrap", "backend", "mountpoint", "transport", "source", "fsid", "domain")
    targets = st.sampled_from(
        ["/v1/mounts", "/v1/bindings", "/v1/nothing", "/v1/mounts?mountpoint="]
    )

    @settings(FEW, max_examples=120)
    @given(
        method=st.sampled_from(["POST", "DELETE", "GET"]),
        target=targets,
        body=st.one_of(
            st.binary(max_size=100),
            st.dictionaries(st.sampled_from(fields), JSON).map(lambda d: json.dumps(d).encode()),
            st.just(b"[" * 100_000),
        ),
    )
    def check(method: str, target: str, body: bytes) -> None:
        status, document = _call(rig.root, method, target, body)
        assert status in (400, 404, 500), document
        assert document["error"]["kind"] != "Internal", document

    check()
    assert rig.status()["mounts"][0]["mountpoint"] == str(mount)
    assert any(p.read_bytes() for p in mount.rglob("*") if p.is_file() and not p.is_symlink())


def test_broken_http_leaves_the_daemon_alive(rig: Rig, golden: Path) -> None:
    image = golden / "images" / "one-lz4"
    rig.mount(image / "image.boot", image / "blobs")
    for junk in (
        b"\0" * 100,
        b"GET / HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/mounts HTTP/1.1\r\nContent-Length: many\r\n\r\n",
        b"POST /v1/mounts HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n{",
        b"POST /v1/mounts HTTP/1.1\r\nContent-Length: 100\r\n\r\n{",
        os.urandom(5000),
    ):
        with socket.socket(socket.AF_UNIX) as raw:
            raw.settimeout(5)
            raw.connect(str(rig.root / "api.sock"))
            with contextlib.suppress(OSError):
                raw.sendall(junk)
                raw.shutdown(socket.SHUT_WR)
                while raw.recv(4096):
                    pass
    assert len(rig.status()["mounts"]) == 1
    assert "Traceback" not in rig.log()


def test_planted_links_in_the_cache_are_not_followed(rig: Rig, golden: Path) -> None:
    image = golden / "images" / "one-lz4"
    (blob,) = (image / "blobs").iterdir()
    victim = rig.base / "victim"
    victim.write_text("precious")
    for suffix in ("blob.data", "blob.data.chunk_map", "identity", "blob.meta"):
        for directory in ("root", "root/cache"):
            (rig.base / directory).mkdir(mode=0o700, exist_ok=True)
        planted = rig.root / "cache" / f"{blob.name}.{suffix}"
        planted.unlink(missing_ok=True)
        planted.symlink_to(victim)
        done = rig.run(
            "mount", image / "image.boot", rig.mountpoint(), "--blob-dir", image / "blobs",
            check=False,
        )
        if done.returncode == 0:
            rig.run("stop")
        else:
            assert "hint: " in done.stderr
            assert "Traceback" not in done.stderr
        planted.unlink(missing_ok=True)
        assert victim.read_text() == "precious", suffix
