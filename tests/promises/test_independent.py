"""An image that is complete needs nothing of ours: everything is killed, and all of it is read."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from rangeserver import Fault, RangeServer
from rig import Rig
from trees import assert_tree

PATIENCE_S = 60.0


def _mount_of(rig: Rig, mount: Path) -> dict[str, Any]:
    found = [m for m in rig.status()["mounts"] if m["mountpoint"] == str(mount)]
    assert len(found) == 1
    return dict(found[0])


def test_a_complete_image_outlives_everything(rig: Rig, golden: Path) -> None:
    image = golden / "images" / "layers-zstd"
    mount = rig.mount(image / "image.boot", image / "blobs", "m", "--prefetch", "none")
    time.sleep(1.5)  # housekeeping had the time to be wrong
    assert not _mount_of(rig, mount)["independent"], "nothing was loaded yet"
    rig.run("prefetch", mount)
    deadline = time.monotonic() + PATIENCE_S
    while not _mount_of(rig, mount)["independent"]:
        assert time.monotonic() < deadline, rig.log()
        time.sleep(0.1)
    rig.kill_at_once()
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")
    assert_tree(mount, image / "expected.jsonl")
    # The next start leaves the mount as it is: readers lost nothing.
    device = mount.stat().st_dev
    rig.run("mount", golden / "images" / "one-lz4" / "image.boot", rig.mountpoint("other"),
            "--blob-dir", golden / "images" / "one-lz4" / "blobs")  # fmt: skip
    assert mount.stat().st_dev == device
    assert "may have shown zeros" not in rig.log()
    assert _mount_of(rig, mount)["mounted"]
    assert_tree(mount, image / "expected.jsonl")
    for point in (rig.base / "other", mount):
        rig.run("umount", point)


def test_complete_in_spite_of_a_registry_that_was_away(rig: Rig, golden: Path) -> None:
    """What failed of a prefetch of all is tried again until the image is whole."""
    image = golden / "images" / "layers-zstd"
    with RangeServer(image / "blobs") as server:
        options = {"scheme": "http", "host": server.host, "repo": "test"}
        backend = rig.base / "backend.json"
        backend.write_text(json.dumps({"type": "registry", "registry": options}))
        mount = rig.mountpoint("m")
        rig.run("mount", image / "image.boot", mount, "--backend", backend, "--complete",
                "--bandwidth", "2M")  # fmt: skip
        server.always = Fault(status=404)  # 11 MB take longer than until here
        deadline = time.monotonic() + 2 * PATIENCE_S
        while not any(blob["errors"] for blob in rig.status()["blobs"]):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        server.always = Fault()
        while not _mount_of(rig, mount)["independent"]:
            assert time.monotonic() < deadline, rig.log()
            time.sleep(0.2)
    assert_tree(mount, image / "expected.jsonl")
    rig.run("umount", mount)
