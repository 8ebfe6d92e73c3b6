"""The ends of ``nydusify mount`` that are not a signal: kills, an umount by hand, trees in use."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from oci_kit import Nydusify, erofs_mounts, push_image, two_layers
from servers import Pusher

from nydus_fscache.api.client import Client
from nydus_fscache.convert.workdir import end_daemon

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="NOT ROOT: nothing can be mounted")
NEW = b"new" * 1000


@pytest.fixture
def target(registry: str, repo: str, push: Pusher, nydusify: Nydusify) -> Iterator[str]:
    push_image(push, "v1", two_layers())
    name = f"{registry}/{repo}:n"
    nydusify.run("convert", "--source", f"{registry}/{repo}:v1", "--target", name)
    yield name
    for root in nydusify.directory.glob("tmp/nydusify-*/daemon"):
        end_daemon(root)


def left_by(nydusify: Nydusify) -> Path:
    """The daemon's directory of the run that was killed."""
    (root,) = nydusify.directory.glob("tmp/nydusify-*/daemon")
    return root


@pytest.mark.parametrize("killed", ["nydusify", "all"])
def test_what_a_kill_left_is_ended_by_the_next_run(
    nydusify: Nydusify, target: str, killed: str
) -> None:
    point = nydusify.directory / "mnt"
    with nydusify.mounting(target) as process:
        process.kill()
        process.wait()
        root = left_by(nydusify)
        assert (point / "dir" / "new").read_bytes() == NEW  # it is served on
        if killed == "all":
            status = Client(root).call("GET", "/v1/status")
            for pid in (status["keeper_pid"], status["pid"]):
                os.kill(pid, signal.SIGKILL)
    assert str(point) in erofs_mounts()
    with nydusify.mounted(target):  # at the same place
        assert not root.exists()
        assert (point / "dir" / "new").read_bytes() == NEW
    assert str(point) not in erofs_mounts()
    assert nydusify.left() == ["log", "mnt"]


def test_any_command_in_that_work_directory_ends_it(
    registry: str, repo: str, nydusify: Nydusify, target: str
) -> None:
    with nydusify.mounting(target) as process:
        process.kill()
    point = nydusify.directory / "mnt"
    held = (point / "dir" / "new").open("rb")
    with held:
        again = f"{registry}/{repo}:again"
        said = nydusify.run("copy", "--source", target, "--target", again)
        assert "stays" in said  # somebody reads it
        assert held.read() == NEW
    nydusify.run("copy", "--source", target, "--target", again)
    assert str(point) not in erofs_mounts()
    assert nydusify.left() == ["log", "mnt"]


def test_an_umount_by_hand_ends_it(nydusify: Nydusify, target: str) -> None:
    with nydusify.mounting(target) as process:
        subprocess.run(["umount", nydusify.directory / "mnt"], check=True)
        assert process.wait(90) == 0
    assert nydusify.left() == ["log"]


def test_a_tree_in_use_is_served_on(nydusify: Nydusify, target: str) -> None:
    point = nydusify.directory / "mnt"
    with nydusify.mounting(target) as process, (point / "bin" / "app").open("rb") as held:
        process.send_signal(signal.SIGTERM)
        assert process.wait(90) == 1
        said = (nydusify.directory / "log").read_text()
        assert f"process {os.getpid()} " in said
        assert f"umount {point}" in said
        assert len(held.read()) == 3_000_000
        held.close()
        subprocess.run(["umount", point], check=True)
    nydusify.run("copy", "--source", target, "--target", f"file://{nydusify.directory}/a.tar")
    assert nydusify.left() == ["a.tar", "log", "mnt"]
