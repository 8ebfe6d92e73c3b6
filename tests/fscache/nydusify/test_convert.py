"""convert: the result, seen with other eyes than nydusify's."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import subprocess
import tarfile
from pathlib import Path

import pytest
from oci_kit import (
    BASE,
    DOCKER_MANIFEST,
    EXPECTED,
    OCI_MANIFEST,
    OCI_TAR,
    OCI_ZSTD,
    PREFIX,
    Entry,
    Layer,
    Nydusify,
    get,
    get_blob,
    layer_tar,
    noise,
    push_image,
    real_builder,
    tags,
    two_layers,
)
from servers import Pusher, moto_server

import rafs_v6


def bootstrap_tar(host: str, repo: str, manifest: dict) -> bytes:
    return gzip.decompress(get_blob(host, repo, manifest["layers"][-1]["digest"]))


def opened(host: str, repo: str, manifest: dict, directory: Path) -> rafs_v6.Image:
    """The image, out of what the registry serves."""
    blobs = directory / "blobs"
    blobs.mkdir(exist_ok=True)
    for layer in manifest["layers"][:-1]:
        data = get_blob(host, repo, layer["digest"])
        (blobs / layer["digest"].removeprefix("sha256:")).write_bytes(data)
        original = layer["annotations"].get(f"{PREFIX}nydus-ref")
        if original:
            path = blobs / original.removeprefix("sha256:")
            path.write_bytes(get_blob(host, repo, original))
    with tarfile.open(fileobj=io.BytesIO(bootstrap_tar(host, repo, manifest))) as tar:
        boot = tar.extractfile("image/image.boot")
        assert boot is not None
        (directory / "boot").write_bytes(boot.read())
    return rafs_v6.open(directory / "boot", blobs=blobs)


def upper() -> list[Layer]:
    return two_layers()[1:]


def check_content(image: rafs_v6.Image) -> None:
    names = {path.decode() for path, _ in image.walk()}
    assert "/etc/old" not in names
    assert "/dir/gone" not in names
    assert not any(".wh." in name for name in names)
    for path, data in EXPECTED.items():
        assert image.read(path) == data
    assert image.lookup("/hard").nid == image.lookup("/bin/app").nid
    xattrs = image.xattrs("/attr")
    assert xattrs == {b"user.a": b"1", b"user.b": b"2", b"user.c": b"3"}


@pytest.mark.parametrize("docker", [False, True])
def test_an_image_becomes_a_nydus_image(
    registry: str, repo: str, push: Pusher, nydusify: Nydusify, tmp_path: Path, docker: bool
) -> None:
    source = push_image(push, "v1", two_layers(), docker=docker)
    nydusify.run(
        "convert", "--source", f"{registry}/{repo}:v1", "--target-suffix", "-nydus",
        "--output-json", "out.json",
    )  # fmt: skip
    answer = get(registry, repo, "v1-nydus")
    manifest = answer.json()
    assert answer.headers["content-type"] == (DOCKER_MANIFEST if docker else OCI_MANIFEST)
    assert answer.text == json.dumps(manifest, indent=2)
    *blobs, last = manifest["layers"]
    assert [b["annotations"] for b in blobs] == [{f"{PREFIX}nydus-blob": "true"}] * 2
    assert last["annotations"] == {
        f"{PREFIX}nydus-bootstrap": "true", f"{PREFIX}nydus-fs-version": "6",
    }  # fmt: skip
    assert manifest["annotations"][f"{PREFIX}nydus-source-digest"] == source["digest"]
    assert manifest["annotations"][f"{PREFIX}nydus-source-reference"] == f"{registry}/{repo}:v1"
    config = json.loads(get_blob(registry, repo, manifest["config"]["digest"]))
    tar = bootstrap_tar(registry, repo, manifest)
    assert config["rootfs"]["diff_ids"] == [
        *(b["digest"] for b in blobs), f"sha256:{hashlib.sha256(tar).hexdigest()}",
    ]  # fmt: skip
    assert [h["created_by"] for h in config["history"]] == ["layer 0", "layer 1", "Nydus Converter"]
    assert config["config"]["Cmd"] == ["/bin/app"]
    check_content(opened(registry, repo, manifest, tmp_path))
    report = json.loads((nydusify.directory / "out.json").read_text())
    assert report["TargetImageSize"] == manifest["config"]["size"] + sum(
        layer["size"] for layer in manifest["layers"]
    )
    assert report["ConversionElapsed"] > 0
    assert nydusify.left() == ["out.json"]


def test_the_bootstrap_layer_is_framed_byte_for_byte(
    registry: str, repo: str, push: Pusher, nydusify: Nydusify
) -> None:
    push_image(push, "v1", [*two_layers(), Layer(layer_tar([Entry("only", mode=0o755)]))])
    nydusify.run("convert", "--source", f"{registry}/{repo}:v1", "--target", f"{registry}/{repo}:n")
    manifest = get(registry, repo, "n").json()
    tar = bootstrap_tar(registry, repo, manifest)
    first = tar[:512]
    assert first[:6] == b"image\0"
    assert first[100:108] == b"0000755\0"
    assert first[156:157] == b"5"
    assert first[257:265] == b"ustar\x0000"
    assert first[329:345] == b"0000000\0" * 2
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened_tar:
        members = opened_tar.getmembers()
    # The layer without data has no metadata of chunks.
    blobs = [layer["digest"].removeprefix("sha256:") for layer in manifest["layers"][:2]]
    assert [m.name for m in members] == [
        "image", "image/image.boot", *(f"image/{b}.blob.meta" for b in blobs),
    ]  # fmt: skip
    assert all(m.size % 4096 == 0 for m in members[2:])
    end = members[-1].offset_data + -(-members[-1].size // 512) * 512
    assert tar[end:] == bytes(1024)
    head = get_blob(registry, repo, manifest["layers"][-1]["digest"])[:10]
    assert head == b"\x1f\x8b\x08\0\0\0\0\0\0\xff"


def test_the_same_image_gives_the_same_digest(
    registry: str, repo: str, push: Pusher, nydusify: Nydusify
) -> None:
    push_image(push, "v1", two_layers())
    digests = set()
    for i, directory in enumerate(("a", "deep/er/work")):
        nydusify.run(
            "convert", "--source", f"{registry}/{repo}:v1", "--target", f"{registry}/{repo}-{i}:n",
            "--work-dir", directory,
        )  # fmt: skip
        digests.add(hashlib.sha256(get(registry, f"{repo}-{i}", "n").content).hexdigest())
    assert len(digests) == 1


def test_layers_of_all_kinds_and_the_same_layer_twice(
    registry: str, repo: str, push: Pusher, nydusify: Nydusify, tmp_path: Path
) -> None:
    base, upper = layer_tar(BASE), two_layers()[1].tar
    layers = [Layer(base), Layer(upper, OCI_ZSTD), Layer(base, OCI_TAR), Layer(upper, OCI_ZSTD)]
    push_image(push, "v1", layers)
    said = nydusify.run(
        "convert", "--source", f"{registry}/{repo}:v1", "--target", f"{registry}/{repo}:n"
    )
    manifest = get(registry, repo, "n").json()
    digests = [layer["digest"] for layer in manifest["layers"]]
    assert digests[1] == digests[3]
    assert digests[0] == digests[2]  # equal tars make equal blobs, however they are compressed
    assert said.count("converted, ") == 3
    check_content(opened(registry, repo, manifest, tmp_path))


def test_127_layers(registry: str, repo: str, push: Pusher, nydusify: Nydusify) -> None:
    layers = [Layer(layer_tar([Entry(f"f{i}", b"%d" % i)])) for i in range(3)]
    push_image(push, "many", [layers[i % 3] for i in range(127)])
    nydusify.run("convert", "--source", f"{registry}/{repo}:many", "--target-suffix", "-n")
    assert len(get(registry, repo, "many-n").json()["layers"]) == 128
    push_image(push, "over", [layers[i % 3] for i in range(128)])
    said = nydusify.run(
        "convert", "--source", f"{registry}/{repo}:over", "--target-suffix", "-n", code=1
    )
    assert "127 are allowed" in said


def test_zran_refers_to_the_layers(
    registry: str, repo: str, push: Pusher, nydusify: Nydusify, tmp_path: Path
) -> None:
    layers = two_layers()
    push_image(push, "v1", layers, docker=True)
    said = nydusify.run(
        "convert", "--source", f"{registry}/{repo}:v1", "--target", f"{registry}/{repo}-z:n",
        "--oci-ref",
    )  # fmt: skip
    assert "--oci is implied" in said
    manifest = get(registry, f"{repo}-z", "n").json()
    assert manifest["mediaType"] == OCI_MANIFEST
    for layer, original in zip(manifest["layers"], layers, strict=False):
        digest = f"sha256:{hashlib.sha256(original.stored()).hexdigest()}"
        assert layer["annotations"] == {f"{PREFIX}nydus-blob": "true", f"{PREFIX}nydus-ref": digest}
        assert get_blob(registry, f"{repo}-z", digest) == original.stored()
    check_content(opened(registry, f"{repo}-z", manifest, tmp_path))
    nydusify.run(
        "check", "--source", f"{registry}/{repo}:v1", "--target", f"{registry}/{repo}-z:n"
    )


def test_zran_needs_gzip(registry: str, repo: str, push: Pusher, nydusify: Nydusify) -> None:
    push_image(push, "v1", [Layer(layer_tar(BASE), OCI_ZSTD)])
    said = nydusify.run(
        "convert", "--source", f"{registry}/{repo}:v1", "--target-suffix", "-n", "--oci-ref", code=1
    )
    assert "not compressed by gzip" in said
    assert tags(registry, repo) == ["v1"]


def test_a_referrer_names_its_subject(
    registry: str, repo: str, push: Pusher, nydusify: Nydusify
) -> None:
    source = push_image(push, "v1", two_layers())
    nydusify.run(
        "convert", "--source", f"{registry}/{repo}:v1", "--target-suffix", "-n", "--with-referrer"
    )
    manifest = get(registry, repo, "v1-n").json()
    assert manifest["subject"] == source
    assert list(manifest) == [
        "schemaVersion", "mediaType", "config", "layers", "subject", "annotations",
    ]  # fmt: skip


def test_a_nydus_image_passes_unchanged(
    registry: str, repo: str, push: Pusher, nydusify: Nydusify
) -> None:
    push_image(push, "v1", two_layers())
    nydusify.run("convert", "--source", f"{registry}/{repo}:v1", "--target", f"{registry}/{repo}:n")
    nydusify.run(
        "convert", "--source", f"{registry}/{repo}:n", "--target", f"{registry}/{repo}-2:n"
    )
    first, second = get(registry, repo, "n").json(), get(registry, f"{repo}-2", "n").json()
    assert first["layers"] == second["layers"]
    assert second["annotations"][f"{PREFIX}nydus-source-reference"] == f"{registry}/{repo}:n"


def test_the_originals_checker_takes_our_image(
    registry: str, repo: str, push: Pusher, nydusify: Nydusify, tmp_path: Path
) -> None:
    builder = real_builder()
    push_image(push, "v1", two_layers())
    for words in ((), ("--oci-ref",)):
        nydusify.run(
            "convert", "--source", f"{registry}/{repo}:v1", "--target", f"{registry}/{repo}:n",
            *words,
        )  # fmt: skip
        manifest = get(registry, repo, "n").json()
        opened(registry, repo, manifest, tmp_path)
        subprocess.run([builder, "check", "--bootstrap", tmp_path / "boot"], check=True)


def test_another_builder_is_run_with_the_originals_words(
    registry: str, repo: str, push: Pusher, nydusify: Nydusify
) -> None:
    builder = real_builder()
    recorder = nydusify.directory / "recorder"
    recorder.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$*" >> {nydusify.directory}/argv\nexec {builder} "$@"\n'
    )
    recorder.chmod(0o755)
    # The original cannot read the fifos that Python's tarfile writes: they name no device.
    push_image(push, "v1", [Layer(layer_tar([e for e in BASE if e.name != "pipe"])), *upper()])
    source, target = f"{registry}/{repo}:v1", f"{registry}/{repo}:n"
    nydusify.run("convert", "--source", source, "--target", target, "--nydus-image", str(recorder))
    nydusify.run("check", "--source", source, "--target", target)
    lines = (nydusify.directory / "argv").read_text().splitlines()
    created = [line for line in lines if line.startswith("create")]
    assert len(created) == 2
    assert created[0].startswith(
        "create --log-level warn --prefetch-policy fs --whiteout-spec none --fs-version 6"
        " --type tar-rafs --blob-inline-meta --features blob-toc --compressor zstd"
        " --chunk-size 0x100000 --blob "
    )
    merged = next(line for line in lines if line.startswith("merge"))
    assert "--prefetch-policy fs --output-json " in merged
    assert get(registry, repo, "n").status_code == 200


def test_a_builder_that_fails_says_why(
    registry: str, repo: str, push: Pusher, nydusify: Nydusify
) -> None:
    builder = nydusify.directory / "broken"
    builder.write_text('#!/bin/sh\necho "the moon is full" >&2\nexit 3\n')
    builder.chmod(0o755)
    push_image(push, "v1", two_layers())
    said = nydusify.run(
        "convert", "--source", f"{registry}/{repo}:v1", "--target-suffix", "-n",
        "--nydus-image", str(builder), code=1,
    )  # fmt: skip
    assert "nydus-image create failed (exit status 3): the moon is full" in said
    assert tags(registry, repo) == ["v1"]
    assert nydusify.left() == ["broken"]


def test_a_chunk_dictionary_saves_bytes(
    registry: str, repo: str, push: Pusher, nydusify: Nydusify, tmp_path: Path
) -> None:
    push_image(push, "base", two_layers())
    nydusify.run(
        "convert", "--source", f"{registry}/{repo}:base", "--target", f"{registry}/{repo}-d:n"
    )
    shared = Entry("bin/other", noise(3_000_000, 1))
    push_image(push, "next", [Layer(layer_tar([shared, Entry("own", noise(5000, 9))]))])
    target = f"{registry}/{repo}-t:n"
    nydusify.run(
        "convert", "--source", f"{registry}/{repo}:next", "--target", target,
        "--chunk-dict", f"bootstrap:registry:{registry}/{repo}-d:n",
    )  # fmt: skip
    manifest = get(registry, f"{repo}-t", "n").json()
    own, from_dict, _ = manifest["layers"]
    body = json.loads(get_blob(registry, f"{repo}-t", manifest["config"]["digest"]))
    assert len(body["history"]) == len(body["rootfs"]["diff_ids"]) == 3
    assert own["size"] < 30_000
    assert from_dict["size"] > own["size"]
    image = opened(registry, f"{repo}-t", manifest, tmp_path)
    assert image.read("/bin/other") == noise(3_000_000, 1)
    nydusify.run("check", "--source", f"{registry}/{repo}:next", "--target", target)


def test_blobs_in_a_directory(
    registry: str, repo: str, push: Pusher, nydusify: Nydusify
) -> None:
    push_image(push, "v1", two_layers())
    blobs = nydusify.directory / "blobs"
    config = ("--backend-type", "localfs", "--backend-config", json.dumps({"dir": str(blobs)}))
    source, target = f"{registry}/{repo}:v1", f"{registry}/{repo}-b:n"
    nydusify.run("convert", "--source", source, "--target", target, *config)
    manifest = get(registry, f"{repo}-b", "n").json()
    (only,) = manifest["layers"]
    assert only["annotations"]["containerd.io/uncompressed"].startswith("sha256:")
    config_body = json.loads(get_blob(registry, f"{repo}-b", manifest["config"]["digest"]))
    assert len(config_body["history"]) == 1
    for file in blobs.iterdir():
        assert hashlib.sha256(file.read_bytes()).hexdigest() == file.name
    assert len(list(blobs.iterdir())) == 2
    nydusify.run(
        "check", "--source", source, "--target", target, "--target-backend-type", "localfs",
        "--target-backend-config", json.dumps({"dir": str(blobs)}),
    )  # fmt: skip


def test_blobs_in_a_bucket(
    registry: str, repo: str, push: Pusher, nydusify: Nydusify, tmp_path: Path
) -> None:
    with moto_server(tmp_path) as host:
        import boto3

        keys = {"aws_access_key_id": "id", "aws_secret_access_key": "secret"}
        client = boto3.client("s3", endpoint_url=f"http://{host}", region_name="us-east-1", **keys)
        client.create_bucket(Bucket="blobs")
        config = json.dumps(
            {
                "scheme": "http", "endpoint": host, "region": "us-east-1", "bucket_name": "blobs",
                "object_prefix": "a/", "access_key_id": "id", "access_key_secret": "secret",
            }
        )  # fmt: skip
        push_image(push, "v1", two_layers())
        source, target = f"{registry}/{repo}:v1", f"{registry}/{repo}-b:n"
        nydusify.run(
            "convert", "--source", source, "--target", target,
            "--backend-type", "s3", "--backend-config", config,
        )  # fmt: skip
        found = client.list_objects_v2(Bucket="blobs")["Contents"]
        assert len(found) == 2
        for entry in found:
            data = client.get_object(Bucket="blobs", Key=entry["Key"])["Body"].read()
            assert entry["Key"] == f"a/{hashlib.sha256(data).hexdigest()}"
        nydusify.run(
            "check", "--source", source, "--target", target,
            "--target-backend-type", "s3", "--target-backend-config", config,
        )  # fmt: skip
        client.close()


def test_prefetched_files_come_first(
    registry: str, repo: str, push: Pusher, nydusify: Nydusify, tmp_path: Path
) -> None:
    push_image(push, "v1", two_layers())
    nydusify.run(
        "convert", "--source", f"{registry}/{repo}:v1", "--target-suffix", "-n",
        "--prefetch-patterns", text=b"/dir/new\n",
    )  # fmt: skip
    image = opened(registry, repo, get(registry, repo, "v1-n").json(), tmp_path)
    assert image.bootstrap.prefetch_nids == (image.lookup("/dir/new").nid,)
