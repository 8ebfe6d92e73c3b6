"""Uploads that break, against a registry whose every answer the test decides."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs

import pytest
from oci_kit import noise
from rangeserver import RangeServer

from nydus_fscache.config.http_options import HttpOptions
from nydus_fscache.errors import BackendError
from nydus_fscache.registry.client import RegistryClient
from nydus_fscache.registry.push import PartsRefused, Upload, UploadLost

PART = 100_000


@dataclass
class Registry:
    """``faults``: what happens to the next parts: "half" is taken of it, or a status is said."""

    faults: list[str] = field(default_factory=list)
    data: bytearray = field(default_factory=bytearray)
    blobs: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    forget: bool = False

    def route(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        self.asked.append(method)
        if "/blobs/sha256:" in path:
            digest = path.rpartition("/")[2]
            found = self.blobs.get(digest)
            return (200, {}, found) if found is not None else (404, {}, b"")
        if method == "POST":
            self.data.clear()
            return 202, {"Location": "/v2/app/blobs/uploads/1?state=0"}, b""
        place = {"Location": f"/v2/app/blobs/uploads/1?state={len(self.data)}"}
        if method == "GET":
            if self.forget:
                return 404, {}, b""
            return 204, {**place, "Range": f"0-{max(0, len(self.data) - 1)}"}, b""
        if method == "DELETE":
            return 204, {}, b""
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "half":
            self.data += body[: len(body) // 2]
            return 503, {"Retry-After": "0"}, b""
        if fault:
            return int(fault), {"Retry-After": "0"}, b""
        self.data += body
        if method == "PATCH":
            moved = f"/v2/app/blobs/uploads/1?state={len(self.data)}"
            return 202, {"Location": moved}, b""
        (digest,) = parse_qs(path.partition("?")[2])["digest"]
        if f"sha256:{hashlib.sha256(self.data).hexdigest()}" != digest:
            return 400, {}, b'{"errors":[{"code":"DIGEST_INVALID","message":"no"}]}'
        self.blobs[digest] = bytes(self.data)
        return 201, {}, b""


def upload(tmp_path: Path, registry: Registry, data: bytes) -> None:
    with (
        RangeServer(tmp_path, route=registry.route) as server,
        RegistryClient(server.host, HttpOptions(scheme="http")) as client,
    ):
        writer = Upload(client, "app", PART)
        try:
            for at in range(0, len(data), 30_000):
                writer.write(data[at : at + 30_000])
            writer.finish(f"sha256:{hashlib.sha256(data).hexdigest()}")
        finally:
            writer.abort()


@pytest.mark.parametrize("size", [0, 10, PART, PART + 1, 5 * PART + 7])
@pytest.mark.parametrize(
    "faults", [[], ["half"], ["half", "half", "503"], ["429", "", "half"], ["416"]]
)
def test_a_broken_upload_goes_on(tmp_path: Path, size: int, faults: list[str]) -> None:
    if faults == ["416"] and size < PART:
        faults = ["502"]  # what is sent whole is not continued
    registry = Registry(list(faults))
    data = noise(size, 2)
    upload(tmp_path, registry, data)
    assert list(registry.blobs.values()) == [data]
    if size > PART and not faults:
        assert registry.asked.count("PATCH") == size // PART


def test_a_blob_that_is_there_is_not_sent(tmp_path: Path) -> None:
    data = noise(1000, 3)
    registry = Registry(blobs={f"sha256:{hashlib.sha256(data).hexdigest()}": data})
    upload(tmp_path, registry, data)
    assert registry.asked == ["HEAD"]


def test_a_registry_that_forgets_is_an_error_and_one_without_parts_another(tmp_path: Path) -> None:
    with pytest.raises(UploadLost):
        upload(tmp_path, Registry(["", "503"], forget=True), noise(3 * PART, 4))
    with pytest.raises(PartsRefused):
        upload(tmp_path, Registry(["405"]), noise(3 * PART, 4))
    registry = Registry(["403"])
    with pytest.raises(BackendError):
        upload(tmp_path, registry, noise(3 * PART, 4))
    assert registry.asked[-1] == "DELETE"
    assert not registry.blobs
