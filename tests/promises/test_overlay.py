"""A mount that was unmounted under an overlay is still read through it, by a successor too."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

from cold import service, successor
from rig import Rig


def test_an_overlay_outlives_umount_and_service(rig: Rig, golden: Path) -> None:
    image = golden / "images" / "one-lz4"
    entries = map(json.loads, (image / "expected.jsonl").read_text().splitlines())
    wanted = {e["path"]: e["sha256"] for e in entries if e["type"] == "reg" and e["nlink"] == 1}
    mount = rig.mount(image / "image.boot", image / "blobs")
    overlay = rig.mountpoint("overlay")
    (rig.base / "empty").mkdir()
    lower = f"lowerdir={mount}:{rig.base / 'empty'}"
    subprocess.run(["mount", "-t", "overlay", "none", "-o", lower, str(overlay)], check=True)
    rig.run("umount", mount)
    pid, _ = service(rig)
    os.kill(pid, signal.SIGKILL)
    successor(rig, pid)
    shown = {p for p in wanted if (overlay / p.lstrip("/")).is_file()}  # whiteouts hide the rest
    assert len(shown) > 3
    for path in shown:
        data = (overlay / path.lstrip("/")).read_bytes()
        assert hashlib.sha256(data).hexdigest() == wanted[path], path
    assert rig.run("stop", check=False).returncode == 6, "the overlay holds it"
    subprocess.run(["umount", str(overlay)], check=True)
    rig.run("stop")
    assert rig.processes() == []


def test_an_overlay_is_served_though_the_copy_of_the_bootstrap_is_deleted(
    rig: Rig, golden: Path
) -> None:
    """By somebody who tidies up: then it does not tell who reads the image."""
    image = golden / "images" / "one-lz4"
    entries = map(json.loads, (image / "expected.jsonl").read_text().splitlines())
    wanted = {e["path"]: e["sha256"] for e in entries if e["type"] == "reg" and e["nlink"] == 1}
    mount = rig.mount(image / "image.boot", image / "blobs", "m", "--prefetch", "none")
    overlay = rig.mountpoint("overlay")
    (rig.base / "empty").mkdir()
    lower = f"lowerdir={mount}:{rig.base / 'empty'}"
    subprocess.run(["mount", "-t", "overlay", "none", "-o", lower, str(overlay)], check=True)
    shutil.rmtree(rig.root / "images")
    rig.run("umount", mount)
    for path in (p for p in wanted if (overlay / p.lstrip("/")).is_file()):
        data = (overlay / path.lstrip("/")).read_bytes()
        assert hashlib.sha256(data).hexdigest() == wanted[path], path
    subprocess.run(["umount", str(overlay)], check=True)
    rig.run("stop")


def test_what_cannot_be_served_again_is_an_error_and_no_wait(rig: Rig, golden: Path) -> None:
    """The successor finds no state: the mount's readers get EIO, promptly, and then it ends."""
    image = golden / "images" / "one-lz4"
    mount = rig.mount(image / "image.boot", image / "blobs")
    pid, _ = service(rig)
    (rig.root / "state.json").unlink()
    os.kill(pid, signal.SIGKILL)
    successor(rig, pid)
    rig.status()
    read = subprocess.run(
        ["cat", *(p for p in sorted(mount.rglob("*")) if p.is_file() and not p.is_symlink())],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert read.returncode == 1
    assert b"Input/output error" in read.stderr
    subprocess.run(["umount", str(mount)], check=True)
    rig.run("stop")
    assert rig.processes() == []
