"""Podman from 5.1 on asks the layer store by digests of tables of contents: its libraries do."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from oci_kit import peer
from podman import BIN, PATIENCE_S, PYTHON, Podman, new_base, podman, push, uses
from trees import assert_tree

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(os.geteuid() != 0, reason="NOT ROOT: no containers"),
]


@pytest.fixture
def rig() -> Iterator[Podman]:
    with podman(new_base()) as made:
        yield made


def test_pull_run_write_remove(rig: Podman, golden: Path) -> None:
    image = golden / "images" / "layers-zstd"
    source = push(rig, image)
    target = f"{source.rpartition(':')[0]}:toc"
    subprocess.run(
        [BIN / "nydusify", "convert", "--source", source, "--target", target, "--toc-digest",
         "--work-dir", rig.base / "work"],
        check=True, capture_output=True,
    )  # fmt: skip
    rig.start_store()
    with subprocess.Popen(
        [peer("storepull"), target],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=rig.environment, cwd=rig.home,
    ) as pulling:  # fmt: skip
        assert pulling.stdout is not None
        assert pulling.stdin is not None
        root = pulling.stdout.readline().strip()
        assert root, pulling.communicate()
        files = [f for f in (rig.home / "graph").rglob("*") if "merged" not in f.parts]
        stored = sum(f.stat().st_size for f in files if f.is_file())
        assert stored < sum(blob.stat().st_size for blob in (image / "blobs").iterdir()) / 2
        assert uses(rig) == len(list((image / "blobs").iterdir())) + 1
        (mounted,) = rig.erofs()
        assert_tree(mounted, image / "expected.jsonl")
        script = "import os, sys; open('/new', 'w'); os.remove('/etc/passwd'); print(sys.version)"
        said = subprocess.run(
            ["chroot", root, *PYTHON, script], capture_output=True, text=True, check=True
        )
        assert said.stdout.startswith("3.")
        assert not (Path(root) / "etc/passwd").exists()
        pulling.stdin.close()
        assert pulling.wait(PATIENCE_S) == 0, pulling.stderr
    assert (uses(rig), rig.erofs()) == (0, [])
