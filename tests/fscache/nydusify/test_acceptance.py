"""What a user relies on, seen at the registry's side: which blobs are asked for, and when a tag
appears; a report's units; what the original's daemon makes of a build."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from faulty import Proxy
from oci_kit import (
    OCI_INDEX,
    PREFIX,
    Nydusify,
    get,
    get_blob,
    noise,
    push_image,
    tags,
    two_layers,
)
from real_daemon import original, started
from servers import Pusher

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="NOT ROOT: nothing can be mounted")


def push_platforms(push: Pusher) -> None:
    """Two images, and their index ``all``."""
    entries = [
        {**push_image(push, arch, two_layers(), architecture=arch),
         "platform": {"architecture": arch, "os": "linux"}}
        for arch in ("amd64", "arm64")
    ]  # fmt: skip
    push.manifest("all", {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries})


def blobs_read(proxy: Proxy) -> list[str]:
    """The digests, in the order in which they were first asked for."""
    lines = [line for line in proxy.asked if line.startswith("GET ") and "/blobs/sha256:" in line]
    return list(dict.fromkeys(line.rpartition("/")[2] for line in lines))


def layers_of(host: str, repo: str, tag: str) -> list[str]:
    return [str(layer["digest"]) for layer in get(host, repo, tag).json()["layers"]]


def test_a_hit_of_the_cache_asks_for_no_layer(
    registry: str, repo: str, push: Pusher, nydusify: Nydusify, proxy: Proxy
) -> None:
    """The cache is in a repository of its own, and its records are as the original writes them."""
    push_image(push, "v1", two_layers())
    source = layers_of(registry, repo, "v1")
    words = ("convert", "--source", f"{proxy.host}/{repo}:v1",
             "--build-cache", f"{proxy.host}/{repo}-c:c", "--target")  # fmt: skip
    nydusify.run(*words, f"{proxy.host}/{repo}-1:n")
    assert set(source) <= set(blobs_read(proxy))
    proxy.asked.clear()
    assert "(cached 2/2)" in nydusify.run(*words, f"{proxy.host}/{repo}-2:n")
    assert not set(source) & set(blobs_read(proxy))
    first, second = (get(registry, f"{repo}-{n}", "n").json() for n in (1, 2))
    assert first["layers"] == second["layers"]
    cache = get(registry, f"{repo}-c", "c").json()
    assert get_blob(registry, f"{repo}-c", cache["config"]["digest"]) == b"{}"
    assert cache["annotations"] == {f"{PREFIX}nydus-cache-version": ""}
    for record, digest in zip(cache["layers"], source, strict=True):
        notes = record["annotations"]
        assert notes[f"{PREFIX}nydus-source-digest"] == digest
        assert notes[f"{PREFIX}nydus-blob"] == "true"
        assert notes["containerd.io/uncompressed"] == record["digest"]
    # Records that do not say how their blobs were made miss; they hide nothing, and stay.
    for record in cache["layers"]:
        record["annotations"].pop(f"{PREFIX}nydus-fscache-key")
    with Pusher(registry, f"{repo}-c") as pusher:
        pusher.manifest("c", {**cache, "mediaType": "application/vnd.oci.image.manifest.v1+json"})
    assert "(cached 0/2)" in nydusify.run(*words, f"{proxy.host}/{repo}-3:n")
    assert get(registry, f"{repo}-3", "n").json()["layers"] == first["layers"]
    assert len(get(registry, f"{repo}-c", "c").json()["layers"]) == 4


@pytest.mark.parametrize("command", ["copy", "convert", "merge"])
def test_a_tag_is_the_old_image_until_it_is_the_new_one(
    registry: str, repo: str, push: Pusher, nydusify: Nydusify, proxy: Proxy, command: str
) -> None:
    """It is looked at before each request of the run."""
    push_platforms(push)
    with Pusher(registry, f"{repo}-t") as other:
        old = push_image(other, "n", two_layers()[:1])["digest"]
    seen: list[str] = []

    def watch(_: int, line: str) -> None:
        seen.append(get(registry, f"{repo}-t", "n").headers["docker-content-digest"])

    proxy.watch = watch
    more = {"copy": (), "convert": (), "merge": ("--merge-platform",)}[command]
    nydusify.run(
        command if command == "copy" else "convert", "--source", f"{proxy.host}/{repo}:all",
        "--target", f"{proxy.host}/{repo}-t:n", "--all-platforms", *more,
    )  # fmt: skip
    assert set(seen) == {old}
    writes = [line for line in proxy.asked if line.partition(" ")[0] in ("PUT", "PATCH", "POST")]
    assert writes[-1] == f"PUT /v2/{repo}-t/manifests/n"
    assert sum("/manifests/n" in line for line in writes) == 1
    assert get(registry, f"{repo}-t", "n").headers["docker-content-digest"] != old
    assert tags(registry, f"{repo}-t") == ["n"]


@ROOT
def test_an_optimized_image_starts_out_of_its_own_blob(
    registry: str, repo: str, push: Pusher, nydusify: Nydusify, proxy: Proxy
) -> None:
    push_image(push, "v1", two_layers())
    source, target = f"{proxy.host}/{repo}:n", f"{proxy.host}/{repo}-o:n"
    nydusify.run("convert", "--source", f"{proxy.host}/{repo}:v1", "--target", source)
    (nydusify.directory / "list").write_text("/dir/new\n")
    nydusify.run("optimize", "--source", source, "--target", target, "--prefetch-files", "list")
    *others, own, _ = layers_of(registry, f"{repo}-o", "n")
    with nydusify.mounted(target) as tree:
        assert own in blobs_read(proxy)
        proxy.asked.clear()  # of every blob, the metadata came with the mount
        assert (tree / "dir" / "new").read_bytes() == b"new" * 1000
        assert set(blobs_read(proxy)) <= {own}
        assert (tree / "hard").read_bytes() == noise(3_000_000, 1)
        assert others[0] in blobs_read(proxy)


def configured(directory: Path, kind: str, config: dict[str, Any]) -> str:
    """nydusd's configuration, in a file."""
    document = {
        "device": {
            "backend": {"type": kind, "config": config},
            "cache": {"type": "blobcache", "config": {"work_dir": str(directory / "d" / "cache")}},
        },
        "mode": "direct", "digest_validate": False, "enable_xattr": True,
        "fs_prefetch": {"enable": False},
    }  # fmt: skip
    file = directory / "nydusd.json"
    file.write_text(json.dumps(document))
    return str(file)


def until_there(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@ROOT
@pytest.mark.parametrize("above", [False, True], ids=["alone", "parent"])
def test_the_originals_daemon_mounts_a_build(
    nydusify: Nydusify, tmp_path: Path, above: bool
) -> None:
    tree = nydusify.directory / "tree"
    (tree / "d").mkdir(parents=True)
    (tree / "d" / "data").write_bytes(noise(2_500_000, 1))
    (tree / "small").write_bytes(b"small")
    (tree / "link").symlink_to("d/data")
    os.setxattr(tree / "small", "user.a", b"1")
    nydusify.run("build", "--source-dir", "tree", "--name", "app", "-o", "out")
    out = nydusify.directory / "out"
    boot, place = out / "app.meta", {"blob_file": str(out / "app.blob")}
    if above:
        (blob,) = json.loads((out / "output.json").read_text())["blobs"]
        (out / "app.blob").rename(out / blob)
        (tree / "small").write_bytes(b"another")
        nydusify.run(
            "build", "--source-dir", "tree", "--name", "next.boot", "-o", "out",
            "--parent-bootstrap", "out/app.meta",
        )  # fmt: skip
        boot, place = out / "next.boot", {"dir": str(out)}
    with started(original(), tmp_path / "d", "--bootstrap", str(boot), "--config",
                 configured(tmp_path, "localfs", place)) as daemon:  # fmt: skip
        until_there(daemon.point / "small")
        subprocess.run(
            ["diff", "--recursive", "--no-dereference", str(tree), str(daemon.point)], check=True
        )
        if not above:
            assert os.getxattr(daemon.point / "small", "user.a") == b"1"


def test_a_report_counts_bytes_and_nanoseconds(
    registry: str, repo: str, push: Pusher, nydusify: Nydusify
) -> None:
    """Of all platforms; a failed run leaves none, not even an older one."""
    push_platforms(push)
    words = ("convert", "--source", f"{registry}/{repo}:all", "--target", f"{registry}/{repo}-t:n",
             "--all-platforms", "--output-json")  # fmt: skip
    began = time.monotonic_ns()
    nydusify.run(*words, "out.json")
    took = time.monotonic_ns() - began
    text = (nydusify.directory / "out.json").read_text()
    report = json.loads(text)
    assert list(report) == [
        "SourceImageSize", "TargetImageSize", "SourcePullElapsed", "ConversionElapsed",
        "TargetPushElapsed",
    ]  # fmt: skip
    assert text == json.dumps(report, separators=(",", ":"))
    for key, repository, tag in (("Source", repo, "all"), ("Target", f"{repo}-t", "n")):
        parts: list[dict[str, Any]] = []
        for entry in get(registry, repository, tag).json()["manifests"]:
            manifest = get(registry, repository, entry["digest"]).json()
            parts += [manifest["config"], *manifest["layers"]]
        assert report[f"{key}ImageSize"] == sum(part["size"] for part in parts)
    spent = [report[name] for name in list(report)[2:]]
    assert all(ns > 1000 for ns in spent)  # not in seconds or milliseconds
    assert sum(spent) < took
    nydusify.run(*words, "out.json", "--source-archive", "none", code=1)
    assert (nydusify.directory / "out.json").read_text() == text  # it was not begun
    nydusify.run(*words, "out.json", "--nydus-image", "/bin/false", code=1)
    assert nydusify.left() == []
    # Where it is not a file: a program that waits for it.
    done = subprocess.run(
        nydusify.argv(*words, "/dev/stdout"), cwd=nydusify.directory,
        env=nydusify.environment(), capture_output=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout)["SourceImageSize"] == report["SourceImageSize"]
    assert Path("/dev/stdout").is_symlink()


def test_a_source_tag_that_moves_meanwhile(
    registry: str, repo: str, push: Pusher, nydusify: Nydusify, proxy: Proxy
) -> None:
    """The image that the tag stood for when it was asked for, and no other's parts."""
    first = push_image(push, "v1", two_layers())["digest"]
    nydusify.run("convert", "--source", f"{registry}/{repo}:v1", "--target", f"{registry}/{repo}:n")

    def watch(_: int, line: str) -> None:
        if "/blobs/" in line:
            push_image(push, "v1", two_layers()[1:])

    proxy.watch = watch
    target = f"{proxy.host}/{repo}-t:n"
    nydusify.run("convert", "--source", f"{proxy.host}/{repo}:v1", "--target", target)
    made = get(registry, f"{repo}-t", "n").json()
    assert made["annotations"][f"{PREFIX}nydus-source-digest"] == first
    assert made["layers"] == get(registry, repo, "n").json()["layers"]
