"""Podman from 5.1 on asks by digests of tables of contents: 5.2 does, and newer libraries do."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from oci_kit import peer
from podman import BIN, PATIENCE_S, PYTHON, Podman, new_base, plain_image, podman, push, uses
from trees import assert_tree

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(os.geteuid() != 0, reason="NOT ROOT: no containers"),
]


@pytest.fixture
def rig() -> Iterator[Podman]:
    with podman(new_base()) as made:
        yield made


@pytest.fixture
def image(rig: Podman, golden: Path) -> str:
    source = push(rig, golden / "images" / "layers-zstd")
    target = f"{source.rpartition(':')[0]}:toc"
    subprocess.run(
        [BIN / "nydusify", "convert", "--source", source, "--target", target, "--toc-digest",
         "--work-dir", rig.base / "work"],
        check=True, capture_output=True,
    )  # fmt: skip
    return target


def blobs(golden: Path) -> list[Path]:
    return list((golden / "images" / "layers-zstd" / "blobs").iterdir())


def stored(rig: Podman) -> int:
    files = [f for f in (rig.home / "graph").rglob("*") if "merged" not in f.parts]
    return sum(f.stat().st_size for f in files if f.is_file())


SCRIPT = "import os, sys; open('/new', 'w'); os.remove('/etc/passwd'); print(sys.version_info[0])"


def test_podman(rig: Podman, image: str, golden: Path) -> None:
    program = rig.base / "bin" / "podman"
    program.parent.mkdir()
    program.symlink_to(peer("podman5"))
    rig.environment["PATH"] = f"{program.parent}:{rig.environment['PATH']}"
    assert "version 5." in rig.podman("--version").stdout
    rig.start_store()
    plain = plain_image(rig.host, "plain")
    as_built = ("--rm", "--security-opt", "seccomp=unconfined")
    for _ in range(2):
        rig.podman("pull", image)
        rig.podman("pull", plain)
        assert stored(rig) < sum(blob.stat().st_size for blob in blobs(golden)) / 2
        (mounted,) = rig.erofs()
        assert_tree(mounted, golden / "images" / "layers-zstd" / "expected.jsonl")
        assert rig.podman("run", *as_built, image, *PYTHON, SCRIPT).stdout == "3\n"
        os.kill(rig.server(), signal.SIGKILL)
        assert rig.podman("run", *as_built, image, *PYTHON, SCRIPT).stdout == "3\n"
        assert rig.podman("run", *as_built, plain, "/bin/busybox", "echo", "a").stdout == "a\n"
        rig.podman("rmi", image, plain)
        assert (uses(rig), rig.erofs()) == (0, [])


def test_libraries(rig: Podman, image: str, golden: Path) -> None:
    rig.start_store()
    with subprocess.Popen(
        [peer("storepull"), image],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=rig.environment, cwd=rig.home,
    ) as pulling:  # fmt: skip
        assert pulling.stdout is not None
        assert pulling.stdin is not None
        root = pulling.stdout.readline().strip()
        assert root, pulling.communicate()
        assert stored(rig) < sum(blob.stat().st_size for blob in blobs(golden)) / 2
        assert uses(rig) == len(blobs(golden)) + 1
        (mounted,) = rig.erofs()
        assert_tree(mounted, golden / "images" / "layers-zstd" / "expected.jsonl")
        said = subprocess.run(
            ["chroot", root, *PYTHON, SCRIPT], capture_output=True, text=True, check=True
        )
        assert said.stdout == "3\n"
        assert not (Path(root) / "etc/passwd").exists()
        pulling.stdin.close()
        assert pulling.wait(PATIENCE_S) == 0, pulling.stderr
    assert (uses(rig), rig.erofs()) == (0, [])
