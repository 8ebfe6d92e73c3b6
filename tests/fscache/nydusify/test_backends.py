"""Blobs in buckets: written whole and in parts, read back, and brought into a registry."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

import pytest
from oci_kit import PREFIX, Nydusify, get, get_blob, noise, push_image, two_layers
from rangeserver import RangeServer
from servers import Pusher, moto_server

from nydus_fscache.convert.bucket import Bucket
from nydus_fscache.errors import BackendError

PART = 5 << 20  # the least that S3 takes


@pytest.fixture(scope="module")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """host:port of an S3 server."""
    with moto_server(tmp_path_factory.mktemp("moto")) as host:
        yield host


@dataclass(frozen=True)
class S3:
    """A bucket, seen by another client than ours."""

    config: dict[str, Any]
    client: Any

    def objects(self) -> dict[str, bytes]:
        name = self.config["bucket_name"]
        found = self.client.list_objects_v2(Bucket=name).get("Contents", [])
        return {
            entry["Key"]: self.client.get_object(Bucket=name, Key=entry["Key"])["Body"].read()
            for entry in found
        }

    def uploads(self) -> int:
        found = self.client.list_multipart_uploads(Bucket=self.config["bucket_name"])
        return len(found.get("Uploads", []))


@pytest.fixture
def s3(moto: str, repo: str) -> Iterator[S3]:
    import boto3

    keys = {"aws_access_key_id": "id", "aws_secret_access_key": "secret"}
    client = boto3.client("s3", endpoint_url=f"http://{moto}", region_name="us-east-1", **keys)
    client.create_bucket(Bucket=repo)
    config = {
        "scheme": "http", "endpoint": moto, "region": "us-east-1", "bucket_name": repo,
        "object_prefix": "a/", "access_key_id": "id", "access_key_secret": "secret",
    }  # fmt: skip
    yield S3(config, client)
    client.close()


def stored(file: Path, data: bytes) -> Path:
    file.write_bytes(data)
    return file


@pytest.mark.parametrize("size", [0, 1, PART, PART + 1, 3 * PART])
def test_objects_whole_and_in_parts(s3: S3, tmp_path: Path, size: int) -> None:
    data = noise(size, 8)
    file = stored(tmp_path / "data", data)
    bucket = Bucket("s3", {**s3.config, "checksum_algorithm": "CRC32"}, PART)
    bucket.put("name ü", lambda: file.open("rb"), size)
    bucket.close()
    assert s3.objects() == {"a/name ü": data}
    assert s3.uploads() == 0


@dataclass
class OssServer:
    """What OSS does with uploads; signatures are checked.  ``faults``: answers to next parts."""

    faults: list[int] = field(default_factory=list)
    objects: dict[str, bytes] = field(default_factory=dict)
    parts: dict[int, bytes] = field(default_factory=dict)
    aborted: int = 0

    def route(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        place, _, query = path.partition("?")
        words = "&".join(sorted(unquote(word) for word in query.split("&") if word))
        resource = unquote(place) + (f"?{words}" if words else "")
        lines = [
            method, "", headers.get("Content-Type", ""), headers["Date"], resource,
        ]  # fmt: skip
        mac = hmac.digest(b"secret", "\n".join(lines).encode(), "sha1")
        if headers["Authorization"] != f"OSS id:{base64.b64encode(mac).decode()}":
            return 403, {}, b"SignatureDoesNotMatch"
        asked = parse_qs(query, keep_blank_values=True)
        if method in ("GET", "HEAD"):
            found = self.objects.get(place)
            return (200, {}, found) if found is not None else (404, {}, b"")
        if method == "POST" and "uploads" in asked:
            self.parts.clear()
            return 200, {}, b"<R><UploadId>7A+b/c=</UploadId></R>"
        if method == "DELETE":
            self.aborted += 1
            return 204, {}, b""
        if method == "PUT" and "partNumber" in asked:
            if self.faults:
                return self.faults.pop(0), {"Retry-After": "0"}, b""
            assert asked["uploadId"] == ["7A+b/c="]
            self.parts[int(asked["partNumber"][0])] = body
            return 200, {"ETag": f'"{hashlib.md5(body).hexdigest()}"'}, b""
        if method == "POST":
            tags = re.findall(rb"<ETag>([^<]+)</ETag>", body)
            ours = [f'"{hashlib.md5(self.parts[n]).hexdigest()}"' for n in sorted(self.parts)]
            assert [tag.decode().replace("&quot;", '"') for tag in tags] == ours
            self.objects[place] = b"".join(self.parts[n] for n in sorted(self.parts))
            return 200, {}, b""
        self.objects[place] = body
        return 200, {}, b""


@pytest.mark.parametrize("faults", [[], [503, 500], [403]])
@pytest.mark.parametrize("size", [1000, 100_000, 345_678])
def test_oss_in_parts_that_break(tmp_path: Path, size: int, faults: list[int]) -> None:
    oss = OssServer(list(faults))
    file = stored(tmp_path / "data", noise(size, 9))
    with RangeServer(tmp_path, route=oss.route) as server:
        config = {
            "scheme": "http", "endpoint": server.host, "bucket_name": "b", "object_prefix": "p/",
            "access_key_id": "id", "access_key_secret": "secret",
        }  # fmt: skip
        bucket = Bucket("oss", config, 100_000)
        if faults == [403] and size > 100_000:
            with pytest.raises(BackendError, match="403"):
                bucket.put("x", lambda: file.open("rb"), size)
            assert not oss.objects
            assert oss.aborted == 1
        else:
            bucket.put("x", lambda: file.open("rb"), size)
            assert oss.objects == {"/b/p/x": noise(size, 9)}
        bucket.close()


def test_from_a_bucket_into_a_registry(
    registry: str, repo: str, push: Pusher, nydusify: Nydusify, s3: S3
) -> None:
    push_image(push, "v1", two_layers())
    config = json.dumps(s3.config)
    source, there, back = (f"{registry}/{repo}{name}" for name in (":v1", "-b:n", "-r:n"))
    nydusify.run(
        "convert", "--source", source, "--target", there, "--backend-type", "s3",
        "--backend-config", config,
    )  # fmt: skip
    assert len(get(registry, f"{repo}-b", "n").json()["layers"]) == 1
    words = ("--source-backend-type", "s3", "--source-backend-config", config)
    nydusify.run("copy", "--source", there, "--target", back, *words)
    manifest = get(registry, f"{repo}-r", "n").json()
    assert [f"a/{layer['digest'][7:]}" for layer in manifest["layers"][:-1]] == [
        key for key in dict.fromkeys(f"a/{one['digest'][7:]}" for one in manifest["layers"])
        if key in s3.objects()
    ]  # fmt: skip
    image = json.loads(get_blob(registry, f"{repo}-r", manifest["config"]["digest"]))
    assert len(image["rootfs"]["diff_ids"]) == len(image["history"]) == len(manifest["layers"])
    assert "containerd.io/uncompressed" not in manifest["layers"][-1]["annotations"]
    said = nydusify.run("check", "--source", source, "--target", back)
    assert "verified image" in said
    # What is not Nydus is copied as it is, with a warning.
    said = nydusify.run("copy", "--source", source, "--target", f"{registry}/{repo}-p:v1", *words)
    assert "is not a nydus image" in said
    assert get(registry, f"{repo}-p", "v1").content == get(registry, repo, "v1").content
    # The dictionary of an image whose blobs are in a bucket.
    nydusify.run(
        "chunkdict", "generate", "--sources", there, "--target", f"{registry}/{repo}-d:d",
        "--backend-type", "s3", "--backend-config", config,
    )  # fmt: skip
    layers = get(registry, f"{repo}-d", "d").json()["layers"]
    assert layers[0]["annotations"] == {f"{PREFIX}nydus-blob": "true"}
    wrong = json.dumps({**s3.config, "object_prefix": "elsewhere/"})
    said = nydusify.run(
        "copy", "--source", there, "--target", f"{registry}/{repo}-w:n", *words[:3], wrong, code=1
    )
    assert "is its prefix right?" in said
    assert get(registry, f"{repo}-w", "n").status_code == 404


def test_build_pushes_into_a_bucket(nydusify: Nydusify, s3: S3) -> None:
    tree = nydusify.directory / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(noise(300_000, 4))
    config = {**s3.config, "meta_prefix": "meta/", "blob_prefix": "blob/"}
    words = (
        "build", "--source-dir", "tree", "--output-dir", "out", "--backend-push",
        "--backend-type", "s3", "--backend-config", json.dumps(config),
    )  # fmt: skip
    said = nydusify.run(*words, "--name", "one")
    assert "meta/one.meta" in said
    out = nydusify.directory / "out"
    blob, boot = sorted(s3.objects())
    assert s3.objects()[boot] == (out / "one.meta").read_bytes()
    assert blob == f"blob/{hashlib.sha256(s3.objects()[blob]).hexdigest()}"
    # A layer above: only its own blob is new; the parent's is there.
    (tree / "more").write_bytes(noise(200_000, 6))
    (out / blob.removeprefix("blob/")).unlink()
    nydusify.run(*words, "--name", "two", "--parent-bootstrap", "out/one.meta")
    assert len(s3.objects()) == 4
    s3.client.delete_object(Bucket=s3.config["bucket_name"], Key=blob)
    said = nydusify.run(
        *words, "--name", "three", "--parent-bootstrap", "out/one.meta", code=1
    )
    assert "neither in the backend nor in" in said
    assert "meta/three.meta" not in s3.objects()
    assert "secret" not in said
