"""build, chunkdict, optimize, reverse, trace and mount."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import subprocess
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from faulty import Answer, Proxy
from oci_kit import (
    OCI_INDEX,
    PREFIX,
    Entry,
    Layer,
    Nydusify,
    erofs_mounts,
    get,
    get_blob,
    layer_tar,
    noise,
    peer,
    push_image,
    tags,
    two_layers,
)
from rangeserver import RangeServer
from servers import Pusher

import rafs_v6

TRACE = "application/vnd.nydus-fscache.trace.v1+json"


@pytest.fixture
def image(registry: str, repo: str, push: Pusher, nydusify: Nydusify) -> dict[str, Any]:
    push_image(push, "v1", two_layers())
    nydusify.run("convert", "--source", f"{registry}/{repo}:v1", "--target", f"{registry}/{repo}:n")
    found: dict[str, Any] = get(registry, repo, "n").json()
    return found


def bootstrap(registry: str, repo: str, manifest: dict[str, Any]) -> bytes:
    data = gzip.decompress(get_blob(registry, repo, manifest["layers"][-1]["digest"]))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        member = tar.extractfile("image/image.boot")
        assert member is not None
        return member.read()


def test_build_of_a_directory(nydusify: Nydusify) -> None:
    tree = nydusify.directory / "tree"
    tree.mkdir()
    (tree / "a").write_bytes(noise(100_000, 1))
    said = nydusify.run("build", "--source-dir", "tree", "--name", "app", "--output-dir", "out")
    assert "successfully built Nydus image" in said
    out = nydusify.directory / "out"
    assert {"app.meta", "app.blob", "output.json"} <= {p.name for p in out.iterdir()}
    (tree / "b").write_bytes(noise(100_000, 2))
    nydusify.run(
        "pack", "--target-dir", "tree", "--bootstrap", "next.boot", "-o", "out",
        "--parent-bootstrap", "out/app.meta",
    )  # fmt: skip
    blobs = json.loads((out / "output.json").read_text())["blobs"]
    (out / "app.blob").rename(out / blobs[0])
    with rafs_v6.open(out / "next.boot", blobs=out) as opened:
        assert opened.read("/b") == noise(100_000, 2)
    assert (out / blobs[-1]).is_file()


def test_reverse_keeps_every_entry(
    registry: str, repo: str, push: Pusher, nydusify: Nydusify, image: dict[str, Any]
) -> None:
    source = f"{registry}/{repo}:n"
    nydusify.run("convert", "--reverse", "--source", source, "--target", f"{registry}/{repo}:oci")
    manifest = get(registry, repo, "oci").json()
    config = json.loads(get_blob(registry, repo, manifest["config"]["digest"]))
    assert len(manifest["layers"]) == len(config["rootfs"]["diff_ids"]) == 2
    assert len(config["history"]) == 2
    assert not any("nydus" in key for key in manifest.get("annotations", {}))
    names = set()
    for layer, diff_id in zip(manifest["layers"], config["rootfs"]["diff_ids"], strict=True):
        data = gzip.decompress(get_blob(registry, repo, layer["digest"]))
        assert f"sha256:{hashlib.sha256(data).hexdigest()}" == diff_id
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            names |= set(tar.getnames())
    assert {"null", "pipe", "hard", "etc/.wh.old", "dir/.wh..wh..opq"} <= names
    nydusify.run("check", "--source", f"{registry}/{repo}:oci", "--target", source)
    nydusify.run("check", "--source", f"{registry}/{repo}:v1", "--target", f"{registry}/{repo}:oci")


def test_a_dictionary_out_of_two_images(
    registry: str, repo: str, push: Pusher, nydusify: Nydusify
) -> None:
    shared = Entry("bin/shared", noise(2_000_000, 5))
    for name in ("a", "b", "c"):
        own = Entry(f"own-{name}", noise(10_000, ord(name)))
        push_image(push, name, [Layer(layer_tar([shared, own]))])
        if name != "c":
            source = f"{registry}/{repo}:{name}"
            nydusify.run("convert", "--source", source, "--target-suffix", "-n")
    sources = ",".join(f"{registry}/{repo}:{name}-n" for name in ("a", "b"))
    target = f"{registry}/{repo}-dict:d"
    nydusify.run("chunkdict", "generate", "--sources", sources, "--target", target)
    manifest = get(registry, f"{repo}-dict", "d").json()
    config = json.loads(get_blob(registry, f"{repo}-dict", manifest["config"]["digest"]))
    assert len(config["rootfs"]["diff_ids"]) == len(manifest["layers"])
    assert len(config["history"]) == len(manifest["layers"])
    assert manifest["layers"][-1]["annotations"][f"{PREFIX}nydus-fs-version"] == "6"
    nydusify.run(
        "convert", "--source", f"{registry}/{repo}:c", "--target", f"{registry}/{repo}-t:n",
        "--chunk-dict", f"bootstrap:registry:{target}",
    )  # fmt: skip
    assert get(registry, f"{repo}-t", "n").json()["layers"][0]["size"] < 100_000
    nydusify.run(
        "check", "--source", f"{registry}/{repo}:c", "--target", f"{registry}/{repo}-t:n"
    )


def trace_of(image: dict[str, Any]) -> bytes:
    blob = image["layers"][1]["digest"].removeprefix("sha256:")
    rows = [[blob, 0, 5, 0, 1], ["0" * 64, 0, 9, 0, 1]]
    return json.dumps({"version": 1, "accesses": rows}).encode()


def test_a_trace_lies_beside_its_image(
    registry: str, repo: str, nydusify: Nydusify, image: dict[str, Any]
) -> None:
    target = f"{registry}/{repo}:n"
    (nydusify.directory / "my.trace").write_bytes(trace_of(image))
    said = nydusify.run("trace", "pull", "--target", target, "--output", "got", code=1)
    assert "has no trace" in said
    nydusify.run("trace", "push", "--target", target, "--trace", "my.trace")
    nydusify.run("trace", "pull", "--target", target, "--output", "got")
    got = json.loads((nydusify.directory / "got").read_text())
    assert len(got["accesses"]) == 1  # a blob that the image does not have is left out
    # This registry has no referrers API: the fallback tag is what others look at.
    digest = hashlib.sha256(get(registry, repo, "n").content).hexdigest()
    index = get(registry, repo, f"sha256-{digest}").json()
    assert [entry["artifactType"] for entry in index["manifests"]] == [TRACE]
    found = subprocess.run(
        [peer("oras"), "discover", "--plain-http", "--format", "json", target],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert TRACE in found


@dataclass
class WithReferrers(Proxy):
    """Answers ``/referrers/`` out of the manifests that were pushed, one on a page, new ones first:
    the specification says nothing of an order."""

    pushed: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def route(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        if method == "PUT" and "/manifests/" in path:
            manifest = json.loads(body)
            if "subject" in manifest:
                entry = {
                    "mediaType": manifest["mediaType"], "size": len(body),
                    "digest": f"sha256:{hashlib.sha256(body).hexdigest()}",
                    "artifactType": manifest.get("artifactType", ""),
                    "annotations": manifest.get("annotations", {}),
                }  # fmt: skip
                self.pushed.setdefault(manifest["subject"]["digest"], []).insert(0, entry)
        if "/referrers/" not in path:
            return super().route(method, path, headers, body)
        place, _, query = path.partition("?")
        entries = self.pushed.get(place.rpartition("/")[2], [])
        page = int(query.partition("page=")[2] or 0)
        document = {
            "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries[page : page + 1],
        }  # fmt: skip
        more = {"Content-Type": OCI_INDEX}
        if page + 1 < len(entries):
            more["Link"] = f'<{place}?page={page + 1}>; rel="next"'
        return 200, more, json.dumps(document).encode()


def test_a_registry_with_referrers_needs_no_tag(
    registry: str, repo: str, nydusify: Nydusify, image: dict[str, Any], tmp_path: Path
) -> None:
    proxy = WithReferrers(registry)
    with RangeServer(tmp_path, route=proxy.route) as server:
        proxy.host = server.host
        target = f"{server.host}/{repo}:n"
        before = tags(registry, repo)
        rows = json.loads(trace_of(image))["accesses"]
        for start in (1, 2, 3):  # the last one counts
            document = {"version": 1, "accesses": [[rows[0][0], 0, 5, 0, start]]}
            (nydusify.directory / "my.trace").write_text(json.dumps(document))
            nydusify.run("trace", "push", "--target", target, "--trace", "my.trace")
        assert tags(registry, repo) == before
        nydusify.run("trace", "pull", "--target", target, "--output", "got")
        got = json.loads((nydusify.directory / "got").read_text())
        assert got["accesses"] == [[rows[0][0], 0, 5, 0, 3]]
        nydusify.run(
            "convert", "--source", f"{server.host}/{repo}:v1", "--target-suffix", "-r",
            "--with-referrer",
        )  # fmt: skip
        digest = hashlib.sha256(get(registry, repo, "v1").content).hexdigest()
        assert len(proxy.pushed[f"sha256:{digest}"]) == 1


@pytest.mark.parametrize(
    "bad",
    [
        b"{", b"[]", b'{"version":2,"accesses":[]}', b'{"version":1,"accesses":[["x",1,2,3,4]]}',
        b'{"version":1,"accesses":[["' + b"0" * 64 + b'",1,2,3,-4]]}',
        b'{"version":1,"accesses":[["' + b"0" * 64 + b'",1,2,3,1e999]]}',
    ],
)  # fmt: skip
def test_a_trace_that_is_wrong_is_refused(
    registry: str, repo: str, nydusify: Nydusify, image: dict[str, Any], bad: bytes
) -> None:
    (nydusify.directory / "bad").write_bytes(bad)
    said = nydusify.run(
        "trace", "push", "--target", f"{registry}/{repo}:n", "--trace", "bad", code=1
    )
    assert "the trace is" in said
    assert tags(registry, repo) == ["n", "v1"]


def test_optimize_by_a_list_and_by_the_trace(
    registry: str, repo: str, nydusify: Nydusify, image: dict[str, Any]
) -> None:
    source = f"{registry}/{repo}:n"
    (nydusify.directory / "list").write_text("/etc/passwd\n/dir/new\n")
    target = f"{registry}/{repo}-o:n"
    nydusify.run("optimize", "--source", source, "--target", target, "--prefetch-files", "list")
    made = get(registry, f"{repo}-o", "n").json()
    *blobs, last = made["layers"]
    assert [b["digest"] for b in blobs[:2]] == [b["digest"] for b in image["layers"][:2]]
    name = last["annotations"][f"{PREFIX}nydus-separated-blob-with-prefetch-files"]
    assert blobs[2]["digest"] == f"sha256:{name}"
    nydusify.run("check", "--source", f"{registry}/{repo}:v1", "--target", target)
    (nydusify.directory / "my.trace").write_bytes(trace_of(image))
    nydusify.run("trace", "push", "--target", source, "--trace", "my.trace")
    nydusify.run("optimize", "--source", source, "--target", f"{registry}/{repo}-t:n")
    nydusify.run("check", "--source", f"{registry}/{repo}:v1", "--target", f"{registry}/{repo}-t:n")
    assert nydusify.left() == ["list", "my.trace", "output"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_mount_until_a_signal_and_with_a_trace(
    registry: str, repo: str, nydusify: Nydusify, image: dict[str, Any]
) -> None:
    target = f"{registry}/{repo}:n"
    (nydusify.directory / "my.trace").write_bytes(trace_of(image))
    nydusify.run("trace", "push", "--target", target, "--trace", "my.trace")
    point = nydusify.directory / "mnt"
    with nydusify.mounted(target, "--work-dir", "w"):
        assert (point / "dir" / "new").read_bytes() == b"new" * 1000
        digest = hashlib.sha256(bootstrap(registry, repo, image)).hexdigest()
        (kept,) = nydusify.directory.glob("w/nydusify-*/daemon/images/*.trace")
        assert kept.name == f"{digest}.trace"
    assert str(point) not in erofs_mounts()
    assert nydusify.left() == ["log", "my.trace"]


def test_mount_of_an_image_that_is_not_nydus(
    registry: str, repo: str, push: Pusher, nydusify: Nydusify
) -> None:
    push_image(push, "v1", two_layers())
    said = nydusify.run("mount", "--target", f"{registry}/{repo}:v1", code=1)
    assert "nydusify convert" in said
