"""nerdctl converts by our ``nydus-image``, and pulls and runs lazily on our ``nydusd``."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from containerd import Stack, running
from oci_kit import peer
from podman import plain_image
from trees import assert_tree

BIN = Path(sys.executable).parent
PYTHON = ("/usr/bin/python3.11", "-S", "-c")

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(os.geteuid() != 0, reason="NOT ROOT: no containers"),
]


@pytest.fixture
def rig() -> Iterator[Stack]:
    with running() as made:
        yield made


def nerdctl(rig: Stack, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return rig.run(
        peer("nerdctl"), "--address", str(rig.containerd_socket), "--snapshotter", "nydus",
        "--data-root", str(rig.base / "nerdctl"), "--insecure-registry",
        "--cgroup-manager", "cgroupfs", *words, check=check,
    )  # fmt: skip


def run(rig: Stack, *words: str) -> str:
    return nerdctl(
        rig, "run", "--rm", "--net", "host", "--security-opt", "seccomp=unconfined", *words
    ).stdout


def test_pull_run_remove(rig: Stack, golden: Path) -> None:
    image = golden / "images" / "layers-zstd"
    reference = rig.push(image)
    nerdctl(rig, "pull", reference)
    blobs = sum(blob.stat().st_size for blob in (image / "blobs").iterdir())
    content = sum(f.stat().st_size for f in (rig.base / "c").rglob("sha256/*"))
    assert content < blobs / 2, "only manifest, configuration and bootstrap were downloaded"
    script = "import os; open('/new', 'w'); os.remove('/etc/passwd'); print(os.getpid())"
    assert run(rig, reference, *PYTHON, script) == "1\n"
    (mounted,) = [p for p in rig.mounts() if p.endswith("/mnt") or "/mnt/" in p]
    assert_tree(Path(mounted), image / "expected.jsonl")
    nerdctl(rig, "rmi", reference)


def test_convert_and_run(rig: Stack) -> None:
    plain = plain_image(rig.host, "plain")
    converted = f"{rig.host}/plain:nydus"
    nerdctl(rig, "--snapshotter", "overlayfs", "pull", plain)
    nerdctl(
        rig, "image", "convert", "--nydus", "--oci", "--nydus-builder-path",
        str(BIN / "nydus-image"), "--nydus-work-dir", str(rig.base / "w"), plain, converted,
    )  # fmt: skip
    nerdctl(rig, "push", converted)
    nerdctl(rig, "rmi", converted)
    nerdctl(rig, "pull", converted)
    assert run(rig, converted, "/bin/busybox", "echo", "a") == "a\n"
