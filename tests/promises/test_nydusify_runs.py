"""containerd and nydus-snapshotter run images of ``nydusify convert``, and our ``check`` passes
those of the snapshotter's own conversion library."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from containerd import Stack, peer, running
from oci_kit import Entry, Layer, Nydusify, get, layer_tar, noise, push_image, real_builder
from servers import Pusher, olareg

BIN = Path(sys.executable).parent
BUSYBOX = Path("/bin/busybox")

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="NOT ROOT: no containers"),
    pytest.mark.skipif(not BUSYBOX.exists(), reason="NO busybox-static: NO CONTAINERS"),
]

DATA = noise(700_000, 5)
LOWER = (
    *(Entry(name, mode=0o755) for name in ("bin", "etc", "proc", "sys", "dev", "gone")),
    *(Entry(f"bin/{name}", target="busybox", kind=tarfile.SYMTYPE)
      for name in ("sh", "cat", "sha256sum", "ls")),
    Entry("etc/hidden", b"no"), Entry("etc/kept", b"kept"), Entry("gone/x", b"x"),
    Entry("data", DATA),
)  # fmt: skip
UPPER = (
    Entry("etc/.wh.hidden", b""), Entry("gone", mode=0o755), Entry("gone/.wh..wh..opq", b""),
    Entry("gone/new", b"new"),
)  # fmt: skip
SCRIPT = "cat /etc/kept; ls /etc; ls /gone; sha256sum < /data"


def layers() -> list[Layer]:
    program = Entry("bin/busybox", BUSYBOX.read_bytes(), mode=0o755)
    return [Layer(layer_tar([*LOWER, program])), Layer(layer_tar(UPPER))]


@pytest.fixture
def nydusify(tmp_path: Path) -> Nydusify:
    return Nydusify(tmp_path)


def run_and_compare(rig: Stack, reference: str, name: str) -> None:
    rig.pull(reference)
    fetched = rig.ctr("content", "ls", "-q").stdout.split()
    said = rig.run_container(reference, name, "/bin/sh", "-c", SCRIPT).stdout
    digest = hashlib.sha256(DATA).hexdigest()
    lines = said.split()
    assert lines == ["keptkept", "new", digest, "-"]
    assert fetched


def convert(nydusify: Nydusify, rig: Stack, docker: bool, words: Sequence[str]) -> str:
    with Pusher(rig.host, "app") as push:
        push_image(push, "v1", layers(), docker=docker)
    target = f"{rig.host}/app:n"
    nydusify.run("convert", "--source", f"{rig.host}/app:v1", "--target", target, *words)
    return target


@pytest.mark.parametrize(
    ("docker", "words"),
    [
        (False, []),
        pytest.param(True, [], marks=pytest.mark.long),
        (False, ["--oci-ref"]),
        pytest.param(True, ["--oci-ref"], marks=pytest.mark.long),
        pytest.param(False, ["--batch-size", "0x100000"], marks=pytest.mark.long),
        pytest.param(False, ["--with-referrer", "--compressor", "none"], marks=pytest.mark.long),
    ],
    ids=["oci", "docker", "zran", "docker-zran", "batch", "none"],
)  # fmt: skip
def test_a_converted_image_runs(nydusify: Nydusify, docker: bool, words: list[str]) -> None:
    with running() as rig:
        run_and_compare(rig, convert(nydusify, rig, docker, words), "one")


@pytest.mark.long
@pytest.mark.parametrize(
    ("words", "detection"),
    [
        (["--with-referrer"], "enable_referrer_detect"),
        (["--merge-platform"], "enable_index_detect"),
    ],
    ids=["referrer", "index"],
)
def test_the_snapshotter_finds_it_beside_the_image(
    nydusify: Nydusify, tmp_path: Path, words: list[str], detection: str
) -> None:
    """By the name of the OCI image: its layers are left in the registry."""
    with olareg(str(peer("olareg")), tmp_path) as host, running(experimental=(detection,)) as rig:
        with Pusher(host, "app") as push:
            push_image(push, "v1", layers())
        source, target = f"{host}/app:v1", f"{host}/app:n"
        nydusify.run("convert", "--source", source, "--target", target, *words)
        name = source if detection == "enable_referrer_detect" else target
        run_and_compare(rig, name, "one")
        assert any(rig.snapshotter_root / "mnt" in Path(m).parents for m in rig.mounts()), "plain"
        # Who does not look for it has the OCI image, by the same name.
        rig.run("ctr", "-a", str(rig.containerd_socket), "images", "pull", "--plain-http",
                "--snapshotter", "overlayfs", name)  # fmt: skip
        rig.ctr("images", "rm", "--sync", name)


@pytest.mark.long
def test_optimized_and_deduplicated_images_run(nydusify: Nydusify) -> None:
    with running() as rig:
        source = convert(nydusify, rig, False, [])
        (nydusify.directory / "list").write_text("/data\n/bin/busybox\n")
        fast, small = f"{rig.host}/fast:n", f"{rig.host}/small:n"
        nydusify.run(
            "optimize", "--source", source, "--target", fast, "--prefetch-files", "list"
        )
        run_and_compare(rig, fast, "fast")
        nydusify.run(
            "convert", "--source", f"{rig.host}/app:v1", "--target", small,
            "--chunk-dict", f"bootstrap:registry:{source}",
        )  # fmt: skip
        run_and_compare(rig, small, "small")


@pytest.mark.parametrize("words", [[], ["-zran"], ["-referrer"], ["-merge"]], ids=" ".join)
@pytest.mark.parametrize("builder", ["ours", "original"])
def test_check_passes_images_of_the_conversion_library(
    registry: str, nydusify: Nydusify, tmp_path: Path, builder: str, words: list[str]
) -> None:
    program = str(peer("ndconvert"))
    image = str(BIN / "nydus-image") if builder == "ours" else real_builder()
    repo = f"lib-{builder}-{''.join(words).strip('-') or 'plain'}"
    with Pusher(registry, repo) as push:
        push_image(push, "v1", layers())
    source, target = f"{registry}/{repo}:v1", f"{registry}/{repo}:n"
    (tmp_path / "work").mkdir()
    subprocess.run(
        [program, "-w", str(tmp_path / "work"), "-b", image, *words, source, target],
        check=True, capture_output=True,
    )  # fmt: skip
    assert "verified image" in nydusify.run("check", "--source", source, "--target", target)
    if not words:  # an image that is Nydus already passes unchanged but for its annotations
        nydusify.run("convert", "--source", target, "--target", f"{registry}/{repo}:again")
        ours, theirs = (get(registry, repo, tag).json() for tag in ("again", "n"))
        assert ours["layers"] == theirs["layers"]
        nydusify.run("convert", "--source", target, "--target", f"{registry}/{repo}:o", "--reverse")
        nydusify.run("check", "--source", source, "--target", f"{registry}/{repo}:o")
