"""Unmodified containerd and nydus-snapshotter run containers on our ``nydusd``.

The root filesystem of each is an overlay over our in-kernel EROFS mount; whatever of ours dies or
is replaced, a container that reads cold data from the registry gets every byte and no error.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cold_image
import pytest
from containerd import PAUSE, Stack, peer, running
from real_daemon import Unix
from trees import assert_tree

START_S = 60.0

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="NOT ROOT: no containers")


@pytest.fixture(scope="module")
def cold(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cold_image.create(tmp_path_factory.mktemp("cold"))


def process_with(rig: Stack, *words: str) -> int:
    """The one process of this rig whose command line has all of these words."""
    found = []
    for pid in rig.daemon_pids():
        line: list[bytes] = []
        with contextlib.suppress(OSError):  # it has just ended
            line = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if all(any(word.encode() in part for part in line) for word in words):
            found.append(pid)
    assert found, (words, rig.logs())
    return found[0]


def front(rig: Stack) -> int:
    return process_with(rig, "nydusd", "--mountpoint")


def images_of(rig: Stack) -> list[Path]:
    """In-kernel EROFS mounts."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [
        Path(line.split()[4]) for line in lines
        if line.split()[4].startswith(f"{rig.base}/") and " - erofs " in line
    ]  # fmt: skip


def mounted(rig: Stack) -> Path:
    """The one below a container."""
    (point,) = images_of(rig)
    return point


def wait_until(what: Callable[[], bool], why: str, patience_s: float = START_S) -> None:
    end = time.monotonic() + patience_s
    while not what():
        assert time.monotonic() < end, why
        time.sleep(0.1)


@contextlib.contextmanager
def cold_reader(rig: Stack, reference: str, name: str) -> Iterator[subprocess.Popen[str]]:
    """A container that reads file after file; at the end it must have read right bytes only."""
    reader = subprocess.Popen(
        [
            "ctr", "-a", str(rig.containerd_socket), "run", "--rm", "--snapshotter", "nydus",
            reference, name, "/bin/sh", "-c", cold_image.READ,
        ],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        time.sleep(1.5)  # it is in the middle of its reading, whatever happens next
        assert reader.poll() is None, reader.communicate()[0]
        yield reader
        said, _ = reader.communicate(timeout=180)
        assert said.strip() == f"read {cold_image.FILES}", f"{said}\n{rig.logs()}"
    finally:
        if reader.poll() is None:
            reader.kill()
        reader.communicate()


@pytest.mark.parametrize("name", ["layers-zstd", "layers-zran"])
@pytest.mark.parametrize("mode", ["shared", "dedicated"])
def test_golden_image_runs(golden: Path, name: str, mode: str) -> None:
    with running(daemon_mode=mode) as rig:
        reference = rig.push(golden / "images" / name)
        rig.pull(reference)
        fetched = rig.ctr("content", "ls", "-q").stdout.split()
        assert len(fetched) <= 3, "manifest, configuration and the layer of the bootstrap"
        script = "import sys, os; print(os.stat('/').st_mode, sys.version_info[0])"
        said = rig.run_container(reference, "one", "/usr/bin/python3.11", "-S", "-c", script)
        assert said.stdout.split()[1] == "3"
        assert_tree(mounted(rig), golden / "images" / name / "expected.jsonl")
        removed_whole(rig, reference)


def nothing_is_left(rig: Stack) -> None:
    """The snapshotter takes away directories behind containerd's answer."""
    snapshots = rig.snapshotter_root / "snapshots"
    wait_until(lambda: not rig.mounts(), f"mounts are left\n{rig.logs()}")
    wait_until(lambda: not list(snapshots.iterdir()), f"snapshots are left\n{rig.logs()}")


def removed_whole(rig: Stack, reference: str) -> None:
    rig.ctr("images", "rm", "--sync", reference)
    nothing_is_left(rig)
    shared = rig.snapshotter_root / "mnt"
    assert not shared.exists() or list(shared.iterdir()) == []


def test_a_container_writes_and_copies_up(cold: Path) -> None:
    with running() as rig:
        reference = rig.push(cold)
        rig.pull(reference)
        script = "echo more >> /etc/marked && echo new > /etc/new && cat /etc/marked /etc/new"
        said = rig.run_container(reference, "writer", "/bin/sh", "-c", script)
        assert said.stdout == "marked\nmore\nnew\n"
        again = rig.run_container(reference, "reader", "/bin/sh", "-c", "cat /etc/marked")
        assert again.stdout == "marked\n"
        removed_whole(rig, reference)


@pytest.mark.parametrize("mode", ["shared", "dedicated"])
def test_a_kubelets_pod(cold: Path, mode: str) -> None:
    """Over the CRI: pod, container, its log; pause image and container are nydus images."""
    with running(daemon_mode=mode, cri=True) as rig:
        rig.push(cold, PAUSE, ["/bin/sleep", "100000"])
        reference = rig.push(cold, "app:v1")
        logs = rig.base / "pod"
        said = rig.run(
            str(peer("cri")), "-a", str(rig.containerd_socket), reference, str(logs),
            "/bin/sh", "-c", "cat /etc/marked; echo new > /etc/new; cat /etc/new; ls /proc/1",
        ).stdout  # fmt: skip
        assert [line.split(" ", 3)[3] for line in said.splitlines()][:2] == ["marked", "new"]
        rig.ctr("-n", "k8s.io", "images", "rm", "--sync", f"{rig.host}/{PAUSE}")
        for row in rig.ctr("-n", "k8s.io", "images", "ls", "-q").stdout.split():
            rig.ctr("-n", "k8s.io", "images", "rm", "--sync", row)
        nothing_is_left(rig)


def test_a_complete_image_needs_nothing_of_ours(cold: Path) -> None:
    """With ``prefetch_all``: front, host, service, keeper and snapshotter are killed for good."""
    with running(prefetch=True) as rig:
        reference = rig.push(cold)
        rig.pull(reference)
        with cold_reader(rig, reference, "reader") as reader:
            wait_until(lambda: _is_independent(rig), f"it is not independent\n{rig.logs()}", 180.0)
            rig.end("snapshotter", signal.SIGKILL)
            while pids := _ours(rig):
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            os.sync()
            Path("/proc/sys/vm/drop_caches").write_text("3")
            assert reader.poll() is None, "it ended too soon"


def _is_independent(rig: Stack) -> bool:
    said = subprocess.run(
        [Path(sys.executable).with_name("nydus-fscache"), "status", "--json",
         "--root", rig.base / "nf"], capture_output=True, text=True, check=True,
    )  # fmt: skip
    return all(mount["independent"] for mount in json.loads(said.stdout)["mounts"])


def _ours(rig: Stack) -> list[int]:
    """Processes of this project; not containerd's, nor those of tests."""
    found = []
    for pid in rig.daemon_pids():
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if any(name in word for word in words[:4] for name in (b"nydus", b"keeper")):
                found.append(pid)
    return found


def _kill_front(rig: Stack) -> None:
    os.kill(front(rig), signal.SIGKILL)


def _end_front(rig: Stack) -> None:
    os.kill(front(rig), signal.SIGTERM)


def _kill_host(rig: Stack) -> None:
    os.kill(process_with(rig, "nydus_fscache.api.nydusd.host"), signal.SIGKILL)


def _kill_service(rig: Stack) -> None:
    os.kill(process_with(rig, "-m", "nydus_fscache.daemon.main"), signal.SIGKILL)


def _kill_keeper(rig: Stack) -> None:
    os.kill(process_with(rig, "keeper.py"), signal.SIGKILL)


def _end_snapshotter(rig: Stack) -> None:
    rig.end("snapshotter", signal.SIGTERM)
    rig.start_snapshotter()


def _kill_snapshotter(rig: Stack) -> None:
    rig.end("snapshotter", signal.SIGKILL)
    rig.start_snapshotter()


def _kill_both(rig: Stack) -> None:
    pid = front(rig)
    rig.end("snapshotter", signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    rig.start_snapshotter()


def _upgrade(rig: Stack) -> None:
    before, following = front(rig), rig.base / "nydusd-next"
    shutil.copy(rig.nydusd, following)
    wanted = {"nydusd_path": str(following), "version": "next", "policy": "rolling"}
    status, said = call(rig.system_socket, "PUT", "/api/v1/daemons/upgrade", wanted)
    assert status in (200, 204), f"{said}\n{rig.logs()}"
    assert front(rig) != before


EVENTS = {
    "kill": _kill_front,
    "term": _end_front,
    "kill-host": _kill_host,
    "kill-service": _kill_service,
    "kill-keeper": _kill_keeper,
    "snapshotter-term": _end_snapshotter,
    "snapshotter-kill": _kill_snapshotter,
    "kill-both": _kill_both,
}


@pytest.mark.parametrize(
    "policy", [pytest.param("restart", marks=pytest.mark.long), "failover"]
)
def test_a_container_reads_on(cold: Path, policy: str) -> None:
    """Through every event, one after the other; a container that is started after each runs."""
    events = dict(EVENTS)
    if policy == "failover":
        events["upgrade"] = _upgrade
    with running(recover_policy=policy) as rig:
        reference = rig.push(cold)
        rig.pull(reference)
        with cold_reader(rig, reference, "reader") as reader:
            for name, event in events.items():
                before = front(rig)
                event(rig)
                if event in (_kill_front, _end_front, _kill_both, _kill_host):
                    wait_until(
                        lambda before=before: any(pid != before for pid in _fronts(rig)),  # type: ignore[misc]
                        f"no front after {name}\n{rig.logs()}",
                    )
                time.sleep(1)
                # a front that was ended has unmounted, and the snapshotter mounts anew
                wait_until(lambda: bool(images_of(rig)), f"no mount after {name}\n{rig.logs()}")
                said = rig.run_container(reference, f"after-{name}", "/bin/cat", "/etc/marked")
                assert said.stdout == "marked\n", name
            assert reader.poll() is None, "it ended before the last event"
            rig.ctr("images", "rm", "--sync", reference)
        nothing_is_left(rig)


def _fronts(rig: Stack) -> list[int]:
    with contextlib.suppress(AssertionError):
        return [front(rig)]
    return []


def call(path: Path, method: str, target: str, body: Any = None) -> tuple[int, Any]:
    connection = Unix(path)
    try:
        connection.request(method, target, None if body is None else json.dumps(body))
        answer = connection.getresponse()
        data = answer.read()
        return answer.status, json.loads(data) if data else None
    finally:
        connection.close()
