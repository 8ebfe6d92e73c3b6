"""copy keeps digests; check finds what is wrong."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from oci_kit import (
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


def converted(registry: str, repo: str, push: Pusher, nydusify: Nydusify) -> dict[str, Any]:
    push_image(push, "v1", two_layers())
    nydusify.run("convert", "--source", f"{registry}/{repo}:v1", "--target", f"{registry}/{repo}:n")
    found: dict[str, Any] = get(registry, repo, "n").json()
    return found


def test_check_finds_each_fault(
    registry: str, repo: str, push: Pusher, nydusify: Nydusify
) -> None:
    manifest = converted(registry, repo, push, nydusify)
    source = f"{registry}/{repo}:v1"
    (nydusify.directory / "output").mkdir()
    (nydusify.directory / "output" / "mine").write_text("stays")

    def fails(tag: str, document: dict[str, Any], *words: str) -> str:
        push.manifest(tag, document)
        return nydusify.run("check", "--target", f"{registry}/{repo}:{tag}", *words, code=1)

    assert "verified image" in nydusify.run(
        "check", "--source", source, "--target", f"{registry}/{repo}:n"
    )
    layers = manifest["layers"]
    unmarked = [{**layers[0], "annotations": {}}, *layers[1:]]
    assert "invalid blob layer in nydus image manifest" in fails(
        "bad1", {**manifest, "layers": unmarked}
    )
    assert "3 (diff ids) != 2 (layers)" in fails("bad2", {**manifest, "layers": layers[1:]})
    config = json.loads(get_blob(registry, repo, manifest["config"]["digest"]))
    flipped = json.loads(json.dumps(config))
    flipped["rootfs"]["diff_ids"][-1] = f"sha256:{'0' * 64}"
    assert "invalid bootstrap layer diff id" in fails("bad3", with_config(push, manifest, flipped))
    other = json.loads(json.dumps(config))
    other["config"]["Cmd"] = ["/bin/sh"]
    assert "source image config should be equal" in fails(
        "bad4", with_config(push, manifest, other), "--source", source
    )
    swapped = {**layers[0], "digest": layers[1]["digest"], "size": layers[1]["size"]}
    assert "should all appear in the layers" in fails(
        "bad5", {**manifest, "layers": [swapped, *layers[1:]]}
    )
    assert (nydusify.directory / "output" / "mine").read_text() == "stays"
    assert (nydusify.directory / "output" / "target" / "nydus_manifest.json").is_file()


def with_config(push: Pusher, manifest: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    body = json.dumps(config).encode()
    place = {**manifest["config"], "digest": f"sha256:{push.blob(body)}", "size": len(body)}
    return {**manifest, "config": place}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (Entry("extra", b"x"), "file not found in target image: /extra"),
        (Entry("attr", b"x", xattrs={"user.a": b"9"}), "file not match in target image"),
        (Entry("etc/passwd", b"root:x:0:1\nme:x:1:1\n"), "file not match in target image"),
        (Entry(".wh.null", b""), "file not found in source image: /null"),
    ],
)
def test_check_compares_files(
    registry: str, repo: str, push: Pusher, nydusify: Nydusify, change: Entry, said: str
) -> None:
    converted(registry, repo, push, nydusify)
    push_image(push, "other", [*two_layers(), Layer(layer_tar([change]))])
    assert said in nydusify.run(
        "check", "--source", f"{registry}/{repo}:other", "--target", f"{registry}/{repo}:n", code=1
    )


def test_copy_keeps_digests_and_mounts(
    registry: str, repo: str, push: Pusher, nydusify: Nydusify
) -> None:
    converted(registry, repo, push, nydusify)
    source, target = f"{registry}/{repo}:n", f"{registry}/{repo}-2:n"
    said = nydusify.run("copy", "--source", source, "--target", target)
    assert get(registry, repo, "n").content == get(registry, f"{repo}-2", "n").content
    assert said.count(": mounted") == 4
    assert nydusify.left() == []


def test_copy_of_an_index_and_of_one_platform(
    registry: str, repo: str, push: Pusher, nydusify: Nydusify
) -> None:
    entries = [
        {
            **push_image(push, arch, two_layers(), architecture=arch),
            "platform": {"architecture": arch, "os": "linux"},
        }
        for arch in ("amd64", "arm64")
    ]
    push.manifest("all", {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries})
    source = f"{registry}/{repo}:all"
    nydusify.run(
        "copy", "--source", source, "--target", f"{registry}/{repo}-2:a", "--all-platforms"
    )
    assert get(registry, repo, "all").content == get(registry, f"{repo}-2", "a").content
    nydusify.run(
        "copy", "--source", source, "--target", f"{registry}/{repo}-2:one",
        "--platform", "linux/arm64",
    )  # fmt: skip
    digest = get(registry, f"{repo}-2", "one").headers["docker-content-digest"]
    assert digest == entries[1]["digest"]


def test_archives_go_round(
    registry: str, repo: str, push: Pusher, nydusify: Nydusify, tmp_path: Path
) -> None:
    converted(registry, repo, push, nydusify)
    source = f"{registry}/{repo}:n"
    archive, layout = tmp_path / "a.tar", tmp_path / "layout"
    nydusify.run("copy", "--source", source, "--target", f"file://{archive}")
    first = archive.read_bytes()
    archive.write_bytes(b"x" * (len(first) + 5000))  # a longer one, that must not shine through
    nydusify.run("copy", "--source", source, "--target", f"file://{archive}")
    assert archive.read_bytes() == first
    nydusify.run("copy", "--source", f"file://{archive}", "--target", f"file://{layout}/")
    assert (layout / "oci-layout").is_file()
    nydusify.run("copy", "--source", f"file://{layout}", "--target", f"{registry}/{repo}-2:b")
    nydusify.run(
        "convert", "--source", source, "--target", "app:n", "--target-archive", f"{tmp_path}/new/"
    )
    assert (tmp_path / "new" / "index.json").is_file()
    assert get(registry, repo, "n").content == get(registry, f"{repo}-2", "b").content
    subprocess.run(
        [peer("crane"), "push", str(layout), f"{registry}/{repo}-3:c"], check=True,
        capture_output=True,
    )  # fmt: skip
    subprocess.run(
        [peer("crane"), "validate", "--remote", f"{registry}/{repo}-3:c", "--fast"], check=True,
        capture_output=True,
    )  # fmt: skip


def test_convert_from_and_to_archives(
    registry: str, repo: str, push: Pusher, nydusify: Nydusify, tmp_path: Path
) -> None:
    push_image(push, "v1", two_layers(), docker=True)
    saved, made = tmp_path / "saved.tar", tmp_path / "made.tar"
    crane = peer("crane")
    subprocess.run([crane, "pull", f"{registry}/{repo}:v1", str(saved)], check=True)
    subprocess.run(["gzip", "-k", str(saved)], check=True)
    for source in (saved, Path(f"{saved}.gz")):
        nydusify.run(
            "convert", "--source", "app:v1", "--source-archive", str(source),
            "--target", "app:n", "--target-archive", str(made), "--oci",
        )  # fmt: skip
    nydusify.run("copy", "--source", f"file://{made}", "--target", f"{registry}/{repo}:n")
    notes = get(registry, repo, "n").json()["annotations"]
    assert notes[f"{PREFIX}nydus-source-reference"] == "docker.io/library/app:v1"
    nydusify.run(
        "check", "--source", f"{registry}/{repo}:v1", "--target", f"{registry}/{repo}:n"
    )
    assert tags(registry, repo) == ["n", "v1"]
    subprocess.run(
        [peer("skopeo"), "inspect", f"oci-archive:{made}"], check=True, capture_output=True
    )


def test_layers_that_zran_images_refer_to_come_along(
    registry: str, repo: str, push: Pusher, nydusify: Nydusify
) -> None:
    """Whatever brings a zran image to another repository."""
    push_image(push, "v1", two_layers())
    source = f"{registry}/{repo}:n"
    nydusify.run("convert", "--source", f"{registry}/{repo}:v1", "--target", source, "--oci-ref")
    (nydusify.directory / "list").write_text("/dir/new\n")
    for number, words in enumerate(
        (("copy",), ("convert",), ("optimize", "--prefetch-files", "list"))
    ):
        target = f"{registry}/{repo}-{number}:n"
        command, *more = words
        nydusify.run(command, "--source", source, "--target", target, *more)
        said = nydusify.run("check", "--source", f"{registry}/{repo}:v1", "--target", target)
        assert "verified image" in said
