"""A real registry with a referrers API (olareg): traces and Nydus images beside their image."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import containerd
import pytest
from oci_kit import PREFIX, Nydusify, get, peer, push_image, tags, two_layers
from servers import Pusher, olareg

TRACE = "application/vnd.nydus-fscache.trace.v1+json"


@pytest.fixture
def referring(tmp_path: Path) -> Iterator[str]:
    directory = tmp_path / "olareg"
    directory.mkdir()
    with olareg(str(containerd.peer("olareg")), directory) as host:
        yield host


def said_by(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def discovered(name: str) -> list[dict[str, str]]:
    """By oras, which is told not to look at fallback tags."""
    said = said_by(
        peer("oras"), "discover", "--plain-http", "--distribution-spec", "v1.1-referrers-api",
        "--format", "json", name,
    )  # fmt: skip
    found = json.loads(said)
    referrers: list[dict[str, str]] = found.get("referrers") or found.get("manifests") or []
    return referrers


def test_images_and_traces_refer_to_what_they_are_of(referring: str, nydusify: Nydusify) -> None:
    with Pusher(referring, "app") as push:
        image = push_image(push, "v1", two_layers())
    source, target = f"{referring}/app:v1", f"{referring}/app:n"
    words = ("convert", "--source", source, "--target", target, "--with-referrer")
    nydusify.run(*words, "--build-cache-tag", "cache")
    assert "(cached 2/2)" in nydusify.run(*words, "--build-cache-tag", "cache")
    (found,) = discovered(source)
    made = get(referring, "app", "n")
    assert found["digest"] == made.headers["docker-content-digest"]
    assert made.json()["subject"]["digest"] == image["digest"]
    listed = said_by(peer("regctl"), "--host", f"reg={referring},tls=disabled", "artifact", "list",
                     source)  # fmt: skip
    assert found["digest"] in listed
    assert "verified image" in nydusify.run("check", "--source", source, "--target", target)

    blob = made.json()["layers"][1]["digest"].removeprefix("sha256:")
    for start in range(4):  # the last one counts, whatever the registry's order
        rows = [[blob, 0, 5, 0, start]]
        (nydusify.directory / "my.trace").write_text(json.dumps({"version": 1, "accesses": rows}))
        nydusify.run("trace", "push", "--target", target, "--trace", "my.trace")
        nydusify.run("trace", "pull", "--target", target, "--output", "got")
        assert json.loads((nydusify.directory / "got").read_text())["accesses"] == rows
    assert tags(referring, "app") == ["cache", "n", "v1"]  # no fallback tag
    assert [one["artifactType"] for one in discovered(target)] == [TRACE] * 4
    said_by(peer("crane"), "validate", "--fast", "--remote", target)

    copied = f"{referring}/copied:n"
    nydusify.run("copy", "--source", target, "--target", copied)
    assert get(referring, "copied", "n").content == made.content
    (nydusify.directory / "list").write_text("/dir/new\n")
    fast = f"{referring}/fast:n"
    nydusify.run("optimize", "--source", target, "--target", fast, "--prefetch-files", "list")
    last = get(referring, "fast", "n").json()["layers"][-1]
    assert f"{PREFIX}nydus-separated-blob-with-prefetch-files" in last["annotations"]
    assert "verified image" in nydusify.run("check", "--source", source, "--target", fast)
