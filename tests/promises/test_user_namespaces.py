"""Containers with a user namespace: the image's owners are theirs, by a kernel id-mapped mount."""

from __future__ import annotations

import os
import time
from pathlib import Path

import cold_image
import pytest
from containerd import PAUSE, Stack, peer, running

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="NOT ROOT: no containers")
START_S = 60.0
SCRIPT = "F=/etc/marked; cat /proc/self/uid_map; ls -ln $F; echo more >> $F; ls -ln $F"


@pytest.fixture(scope="module")
def cold(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cold_image.create(tmp_path_factory.mktemp("cold"))


def run_mapped(rig: Stack, reference: str, outside: int) -> list[list[str]]:
    mapping = f"0:{outside}:65536"
    said = rig.ctr(
        "run", "--rm", "--snapshotter", "nydus", "--uidmap", mapping, "--gidmap", mapping,
        "--remap-labels", reference, f"c{outside}", "/bin/sh", "-c", SCRIPT,
    )  # fmt: skip
    return [line.split() for line in said.stdout.splitlines()]


@pytest.mark.parametrize("mode", ["shared", pytest.param("dedicated", marks=pytest.mark.long)])
def test_owners_are_the_containers(cold: Path, mode: str) -> None:
    with running(daemon_mode=mode) as rig:
        reference = rig.push(cold)
        rig.pull(reference)
        for outside in (200_000, 300_000):  # two pods of one image
            ids, before, after = run_mapped(rig, reference, outside)
            assert ids == ["0", str(outside), "65536"]
            assert before[2:5] == ["0", "0", "7"]
            assert after[2:5] == ["0", "0", "12"], "copied up, with its owner"
        plain = rig.run_container(reference, "plain", "/bin/sh", "-c", "ls -ln /etc/marked")
        assert plain.stdout.split()[2:5] == ["0", "0", "7"]
        rig.ctr("images", "rm", "--sync", reference)
        end = time.monotonic() + START_S
        while rig.mounts():
            assert time.monotonic() < end, f"{rig.mounts()}\n{rig.logs()}"
            time.sleep(0.1)


@pytest.mark.long
def test_a_kubelets_pod_without_the_hosts_users(cold: Path) -> None:
    """``hostUsers: false`` over the CRI, which takes containerd 2 and runc 1.2."""
    with running(cri=True, programs=peer("containerd2")) as rig:
        rig.push(cold, PAUSE, ["/bin/sleep", "100000"])
        reference = rig.push(cold, "app:v1")
        for outside in (200_000, 300_000):
            said = rig.run(
                str(peer("cri")), "-a", str(rig.containerd_socket), "-users", str(outside),
                reference, str(rig.base / f"pod{outside}"), "/bin/sh", "-c", SCRIPT,
            ).stdout  # fmt: skip
            ids, before, after = [line.split()[3:] for line in said.splitlines()]
            assert ids == ["0", str(outside), "65536"]
            assert before[2:5] == ["0", "0", "7"]
            assert after[2:5] == ["0", "0", "12"], "copied up, with its owner"
