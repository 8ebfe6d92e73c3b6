"""The conversion library that the original nydusify is built on, beside ours with one builder: its
arguments, and the images.  ``scripts/peers ndconvert nydus`` builds both programs."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import containerd
import pytest
from oci_kit import (
    BASE,
    PREFIX,
    UPPER,
    Layer,
    Nydusify,
    get,
    get_blob,
    layer_tar,
    push_image,
    real_builder,
)
from servers import Pusher

# The original's builder cannot read the fifos that Python's tarfile writes, and orders several
# attributes by chance.
LAYERS = [
    Layer(layer_tar([e for e in BASE if e.name not in ("pipe", "attr")])),
    Layer(layer_tar(UPPER)),
]
MODES = {"plain": ((), ()), "zran": (("--oci-ref",), ("-zran",)),
         "referrer": (("--with-referrer",), ("-referrer",))}  # fmt: skip
# Of the tool around the library, not of the library: the original's is zstd and 1 MiB, too.
_TOLD = {"--compressor", "zstd", "--chunk-size", "0x100000"}


def recorder(directory: Path, name: str) -> Path:
    """The builder, which writes down its words and its standard input."""
    program = directory / name
    program.write_text(
        f'#!/bin/sh\ni=$(mktemp -p {directory} {name}.XXXXXX)\nprintf "%s\\n" "$*" > $i.argv\n'
        f'case "$*" in *" -h"*|*--version*) exec {real_builder()} "$@";; esac\n'
        f'cat > $i.in; exec {real_builder()} "$@" < $i.in\n'
    )
    program.chmod(0o755)
    return program


def recorded(directory: Path, name: str) -> list[tuple[list[str], bytes]]:
    """Of each call: its words without directories, in their order but for options; its input."""
    calls = []
    for fed in directory.glob(f"{name}.*.in"):
        text = fed.with_suffix(".argv").read_text()
        words = re.sub(r"(?<=[ =])\S*/(?=\S)", "", text).split()
        calls.append((sorted(set(words) - _TOLD), fed.read_bytes()))
    return sorted(calls)


def documents(host: str, repo: str, tag: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Manifest and configuration."""
    manifest = get(host, repo, tag).json()
    return manifest, json.loads(get_blob(host, repo, manifest["config"]["digest"]))


@pytest.mark.parametrize("mode", MODES)
def test_one_builder_is_told_the_same_and_gives_one_image(
    registry: str, repo: str, push: Pusher, nydusify: Nydusify, tmp_path: Path, mode: str
) -> None:
    push_image(push, "v1", LAYERS)
    source, ours, theirs = (f"{registry}/{repo}:{tag}" for tag in ("v1", "ours", "theirs"))
    words, more = MODES[mode]
    nydusify.run(
        "convert", "--source", source, "--target", ours,
        "--nydus-image", str(recorder(nydusify.directory, "a")), *words,
    )  # fmt: skip
    (tmp_path / "work").mkdir()
    done = subprocess.run(
        [containerd.peer("ndconvert"), "-w", tmp_path / "work",
         "-b", recorder(nydusify.directory, "b"), *more, source, theirs],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert recorded(nydusify.directory, "a") == recorded(nydusify.directory, "b")
    (our_manifest, our_config), (manifest, config) = (
        documents(registry, repo, tag) for tag in ("ours", "theirs")
    )
    assert our_config["rootfs"] == config["rootfs"]
    assert our_config["config"] == config["config"]
    *our_blobs, our_last = our_manifest["layers"]
    *blobs, last = manifest["layers"]
    kept = (f"{PREFIX}nydus-blob", f"{PREFIX}nydus-ref")  # those that outlive the library
    for layers in (our_blobs, blobs):
        for layer in layers:
            layer["annotations"] = {
                k: v for k, v in layer["annotations"].items() if k in kept
            }
    assert our_blobs == blobs
    assert our_last["mediaType"] == last["mediaType"]
    assert f"{PREFIX}nydus-bootstrap" in last["annotations"]
    assert our_manifest.get("subject") == manifest.get("subject")
