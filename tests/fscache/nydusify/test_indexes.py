"""convert: of an index one platform, all of them, or both kinds of image beside each other."""

from __future__ import annotations

import json
import subprocess

import pytest
from oci_kit import (
    DOCKER_LIST,
    OCI_INDEX,
    PREFIX,
    Entry,
    Layer,
    Nydusify,
    get,
    get_blob,
    layer_tar,
    peer,
    push_image,
    tags,
    two_layers,
)
from servers import Pusher


def push_index(push: Pusher, tag: str, *, docker: bool = False) -> None:
    entries = []
    for architecture in ("amd64", "arm64"):
        layers = [*two_layers(), Layer(layer_tar([Entry("arch", architecture.encode())]))]
        entry = push_image(push, architecture, layers, docker=docker, architecture=architecture)
        entries.append({**entry, "platform": {"architecture": architecture, "os": "linux"}})
    if not docker:
        attested = push_image(push, "attested", [Layer(layer_tar([Entry("in-toto", b"{}")]))])
        notes = {"vnd.docker.reference.digest": entries[0]["digest"]}
        place = {"architecture": "unknown", "os": "unknown"}
        entries.append({**attested, "platform": place, "annotations": notes})
    kind = DOCKER_LIST if docker else OCI_INDEX
    push.manifest(tag, {"schemaVersion": 2, "mediaType": kind, "manifests": entries})


def test_one_platform_of_an_index_becomes_a_manifest(
    registry: str, repo: str, push: Pusher, nydusify: Nydusify
) -> None:
    push_index(push, "all")
    nydusify.run(
        "convert", "--source", f"{registry}/{repo}:all", "--target-suffix", "-n",
        "--platform", "linux/arm64",
    )  # fmt: skip
    manifest = get(registry, repo, "all-n").json()
    config = json.loads(get_blob(registry, repo, manifest["config"]["digest"]))
    assert config["architecture"] == "arm64"
    index = get(registry, repo, "all").headers["docker-content-digest"]
    assert manifest["annotations"][f"{PREFIX}nydus-source-digest"] == index


@pytest.mark.parametrize("docker", [False, True])
def test_all_platforms_stay_an_index(
    registry: str, repo: str, push: Pusher, nydusify: Nydusify, docker: bool
) -> None:
    push_index(push, "all", docker=docker)
    nydusify.run(
        "convert", "--source", f"{registry}/{repo}:all", "--target-suffix", "-n", "--all-platforms"
    )
    index = get(registry, repo, "all-n").json()
    assert index["mediaType"] == (DOCKER_LIST if docker else OCI_INDEX)
    assert [e["platform"]["architecture"] for e in index["manifests"]] == ["amd64", "arm64"]
    for entry in index["manifests"]:
        manifest = get(registry, repo, entry["digest"]).json()
        assert f"{PREFIX}nydus-bootstrap" in manifest["layers"][-1]["annotations"]


def test_an_absent_platform_is_an_error(
    registry: str, repo: str, push: Pusher, nydusify: Nydusify
) -> None:
    push_index(push, "all")
    said = nydusify.run(
        "convert", "--source", f"{registry}/{repo}:all", "--target-suffix", "-n",
        "--platform", "linux/s390x", "--output-json", "out.json", code=1,
    )  # fmt: skip
    assert "no image for linux/s390x; there are linux/amd64, linux/arm64" in said
    assert "all-n" not in tags(registry, repo)
    assert nydusify.left() == []


def test_merge_platform(registry: str, repo: str, push: Pusher, nydusify: Nydusify) -> None:
    push_image(push, "v1", two_layers())
    source, target = f"{registry}/{repo}:v1", f"{registry}/{repo}:m"
    nydusify.run("convert", "--source", source, "--target", target, "--merge-platform")
    answer = get(registry, repo, "m")
    index = answer.json()
    assert "mediaType" not in index
    plain, nydus = index["manifests"]
    assert nydus["artifactType"] == "application/vnd.nydus.image.manifest.v1+json"
    assert plain["platform"] == nydus["platform"] == {"architecture": "amd64", "os": "linux"}
    document = get(registry, repo, plain["digest"]).json()
    assert document["layers"][0]["digest"].startswith("sha256:4f4fb700ef54461c")
    assert get_blob(registry, repo, document["layers"][0]["digest"])
    nydus_config = get(registry, repo, nydus["digest"]).json()["config"]
    assert nydus_config["mediaType"] == "application/vnd.nydus.image.config.v1+json"
    nydusify.run("check", "--source", source, "--target", target)
    # The other half of the image is looked at, too.
    pulled = nydusify.directory / "pulled.tar"
    subprocess.run(
        [peer("crane"), "pull", "--platform", "linux/amd64", target, str(pulled)], check=True
    )
    assert pulled.stat().st_size > 1_000_000
