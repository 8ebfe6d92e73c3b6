"""What a conversion takes of memory and of the disk, whatever the image."""

from __future__ import annotations

import os
import subprocess

import pytest
from oci_kit import OCI_GZIP, OCI_TAR, Entry, Layer, Nydusify, layer_tar, push_image
from servers import Pusher
from watched import watched

MIB = 1 << 20


@pytest.mark.parametrize("words", [(), ("--oci-ref",)], ids=["stored", "referred to"])
def test_memory_and_disk_do_not_grow_with_the_layers(
    registry: str, repo: str, push: Pusher, nydusify: Nydusify, words: tuple[str, ...]
) -> None:
    kind, size = (OCI_GZIP, 50 * MIB) if words else (OCI_TAR, 100 * MIB)
    layers = [Layer(layer_tar([Entry(f"f{n}", os.urandom(size))]), kind) for n in range(2)]
    push_image(push, "v1", layers)
    scratch = nydusify.directory / "scratch"
    scratch.mkdir()
    process = subprocess.Popen(
        nydusify.argv(
            "convert", "--source", f"{registry}/{repo}:v1", "--target-suffix", "-n", *words
        ),
        cwd=nydusify.directory, env=nydusify.environment({"TMPDIR": str(scratch)}),
        stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        with watched(process, nydusify.directory) as most:
            _, said = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, said.decode()
    assert 20 * MIB < most["memory"] < 200 * MIB
    assert most["disk"] < 20 * MIB
