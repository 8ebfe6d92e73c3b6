"""EROFS before Linux 5.16 knows no device table: the loop device is all of the image.

No such kernel is here: this one is made to look as if it did not know them, and takes the same.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from cold import cold_rounds, successor
from rig import Rig
from trees import assert_tree, golden_names

pytestmark = pytest.mark.parametrize("rig", ["fuse-loop"], indirect=True)

OLD_KERNEL = """
from nydus_fscache.kernel import mount
mount.erofs_has_device_table = lambda: False
"""


@pytest.fixture(autouse=True)
def old_kernel(rig: Rig) -> None:
    hook = rig.base / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(OLD_KERNEL)
    rig.environment["PYTHONPATH"] = str(hook)


def test_golden_images(rig: Rig, golden: Path) -> None:
    for name in golden_names():
        image = golden / "images" / name
        mount = rig.mount(image / "image.boot", image / "blobs", name, "--prefetch", "none")
        assert_tree(mount, image / "expected.jsonl")
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        assert "device=" not in next(line for line in lines if f" {mount} " in line)
        rig.run("umount", mount)
    rig.run("stop")
    assert rig.leftovers() == []


def test_service_killed_under_readers(rig: Rig, golden: Path) -> None:
    """A successor is asked before it knows what the connection shows.  (One device reads one
    thing at a time, so a kill meets a request or none.)"""

    def kill(pid: int) -> int:
        os.kill(pid, signal.SIGKILL)
        return successor(rig, pid)

    result = cold_rounds(rig, golden / "images" / "layers-zstd", 5, kill)
    print(f"service killed {result}")
