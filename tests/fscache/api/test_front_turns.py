"""Calls of nydusd's API at once and in the wrong order: none holds up another's image."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fronts import CONFIG, Rig

from nydus_fscache.api.nydusd import service
from nydus_fscache.api.nydusd.front import State
from nydus_fscache.api.nydusd.turns import Turns
from nydus_fscache.errors import BadImage

MOUNT, BLOBS = "/api/v1/mount", "/api/v2/blobs"


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.listener.close()


@pytest.fixture
def singleton(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path, singleton=True)
    yield made
    made.listener.close()


def entry(fsid: str) -> dict[str, Any]:
    return {
        "type": "bootstrap", "id": fsid, "domain_id": "d",
        "config_v2": {
            "version": 2, "backend": {"type": "localfs", "localfs": {"dir": "/b"}},
            "cache": {"type": "fscache", "fscache": {"work_dir": "/w"}}, "metadata_path": "/i",
        },
    }  # fmt: skip


def wait_for(rig: Rig, name: str) -> None:
    """Until the engine has the call of this name."""
    tick = threading.Event()
    for _ in range(3000):
        if name in rig.engine.entered:
            return
        tick.wait(0.01)
    raise AssertionError(rig.engine.entered)


def test_a_bind_whose_backend_hangs_holds_up_no_other(singleton: Rig) -> None:
    """Of one domain: nydus-snapshotter can put all images into one."""
    slow = singleton.engine.gates["slow"] = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        try:
            waiting = pool.submit(singleton.call, "PUT", BLOBS, entry("slow"))
            wait_for(singleton, "slow")
            other = pool.submit(singleton.call, "PUT", BLOBS, entry("other"))
            assert other.result(10) == (204, None)
            assert singleton.call("GET", f"{BLOBS}?domain_id=d")[0] == 200
            assert singleton.call("GET", "/api/v1/metrics/blobcache?id=other")[0] == 200
            assert singleton.call("DELETE", f"{BLOBS}?domain_id=d&blob_id=other") == (204, None)
        finally:
            slow.set()
        assert waiting.result(30) == (204, None)
    assert singleton.call("DELETE", f"{BLOBS}?domain_id=d&blob_id=slow") == (204, None)


def test_a_domain_is_unbound_with_what_is_just_being_bound(singleton: Rig) -> None:
    slow = singleton.engine.gates["slow"] = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        try:
            binding = pool.submit(singleton.call, "PUT", BLOBS, entry("slow"))
            wait_for(singleton, "slow")
            unbinding = pool.submit(singleton.call, "DELETE", f"{BLOBS}?domain_id=d")
            with pytest.raises(TimeoutError):
                unbinding.result(0.2)
        finally:
            slow.set()
        assert (binding.result(30), unbinding.result(30)) == ((204, None), (204, None))
    assert singleton.engine.mounts == []


def test_a_name_with_a_slash_at_its_end_is_the_same_place(rig: Rig) -> None:
    assert rig.mount("/3") == (204, None)
    assert rig.mount("/3/") == (204, None)
    assert len(rig.call("GET", "/api/v1/daemon")[1]["backend_collection"]) == 1
    assert rig.call("DELETE", f"{MOUNT}?mountpoint=/3/") == (204, None)
    assert rig.call("GET", "/api/v1/daemon")[1]["backend_collection"] == {}
    assert rig.call("DELETE", f"{MOUNT}?mountpoint=/3")[0] == 500


def test_a_failed_mount_leaves_no_directory_on_the_way(rig: Rig) -> None:
    rig.engine.failures = [BadImage("wrong magic")]
    assert rig.mount("/a/b/4")[0] == 500
    assert list(rig.mountpoint.iterdir()) == []


def test_an_unmount_waits_for_a_remount(rig: Rig) -> None:
    """Or it would find nothing mounted, and the image would stay after it."""
    assert rig.mount("/3") == (204, None)
    point = str(rig.mountpoint / "3")
    gate = rig.engine.gates[point] = threading.Event()
    rig.engine.entered.clear()
    body = {"fs_type": "rafs", "source": "/new.boot", "config": CONFIG}
    with ThreadPoolExecutor(2) as pool:
        try:
            remount = pool.submit(rig.call, "PUT", f"{MOUNT}?mountpoint=/3", body)
            wait_for(rig, point)
            unmount = pool.submit(rig.call, "DELETE", f"{MOUNT}?mountpoint=/3")
            with pytest.raises(TimeoutError):
                unmount.result(0.2)
        finally:
            gate.set()
        assert (remount.result(30), unmount.result(30)) == ((204, None), (204, None))
    assert rig.engine.mounts == []


def test_many_calls_at_once_leave_what_the_last_ones_say(rig: Rig) -> None:
    """Names within each other, from eight callers: directories come and go under the others."""
    names = [f"/{a}/{b}" for a in "xy" for b in "123"]

    def caller(number: int) -> list[int]:
        statuses = []
        for turn in range(60):
            name = names[(number * 7 + turn) % len(names)]
            statuses.append(rig.mount(name)[0])
            rig.call("DELETE", f"{MOUNT}?mountpoint={name}")
        return statuses

    with ThreadPoolExecutor(8) as pool:
        mounted = [status for found in pool.map(caller, range(8)) for status in found]
    assert set(mounted) == {204}, "adopted, or mounted"
    for name in names:
        rig.call("DELETE", f"{MOUNT}?mountpoint={name}")
    assert rig.engine.mounts == []
    assert list(rig.mountpoint.iterdir()) == []


def test_one_of_two_takeovers_is_refused(tmp_path: Path) -> None:
    rig = Rig(tmp_path, state=State.INIT)
    point = str(rig.mountpoint / "3")
    gate = rig.engine.gates[point] = threading.Event()
    rig.supervisor.kept = json.loads(
        json.dumps({"entries": [{"name": "/3", "source": "/image.boot", "config": CONFIG}]})
    )
    with ThreadPoolExecutor(2) as pool:
        try:
            first = pool.submit(rig.call, "PUT", "/api/v1/daemon/fuse/takeover")
            wait_for(rig, point)
            second = pool.submit(rig.call, "PUT", "/api/v1/daemon/fuse/takeover")
            assert rig.call("GET", "/api/v1/daemon")[1]["state"] == "INIT"
            assert rig.call("PUT", "/api/v1/daemon/start")[0] == 400
        finally:
            gate.set()
        assert sorted([first.result(30)[0], second.result(30)[0]]) == [204, 400]
    assert len(rig.engine.mounts) == 1
    assert rig.call("PUT", "/api/v1/daemon/start") == (204, None)
    rig.listener.close()


def test_exit_during_a_takeover_is_the_end(tmp_path: Path) -> None:
    rig = Rig(tmp_path, state=State.INIT)
    point = str(rig.mountpoint / "3")
    gate = rig.engine.gates[point] = threading.Event()
    rig.supervisor.kept = {"entries": [{"name": "/3", "source": "/i", "config": CONFIG}]}
    with ThreadPoolExecutor(1) as pool:
        try:
            takeover = pool.submit(rig.call, "PUT", "/api/v1/daemon/fuse/takeover")
            wait_for(rig, point)
            assert rig.call("PUT", "/api/v1/daemon/exit") == (204, None)
        finally:
            gate.set()
        takeover.result(30)
    assert rig.call("GET", "/api/v1/daemon")[1]["state"] == "STOPPED"
    rig.listener.close()


def test_nothing_stays_of_a_name_that_nobody_has() -> None:
    turns: Turns[str] = Turns()
    with turns.of("a"), turns.of("b"):
        assert sorted(turns.names()) == ["a", "b"]
    assert turns.names() == []


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "PAUSE_S", 0.01)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "deaths", [["mounted"], ["mounted", "status"], ["mounted", "status", "mounted", "status"]]
)
def test_a_mount_outlives_the_service_that_dies_in_it(rig: Rig, deaths: list[str]) -> None:
    """The snapshotter forgets a failure, and would start containers on nothing."""
    rig.engine.deaths = deaths
    assert rig.mount("/3") == (204, None)
    assert len(rig.engine.mounts) == 1


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("deaths", [["umount"], ["umounted"], ["status", "umounted", "status"]])
def test_an_unmount_outlives_the_service_that_dies_in_it(rig: Rig, deaths: list[str]) -> None:
    assert rig.mount("/3") == (204, None)
    rig.engine.deaths = deaths
    assert rig.call("DELETE", f"{MOUNT}?mountpoint=/3") == (204, None)
    assert rig.engine.mounts == []
    assert list(rig.mountpoint.iterdir()) == []
    assert rig.call("DELETE", f"{MOUNT}?mountpoint=/3")[0] == 500


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "deaths", [["status"], ["bound"], ["bound", "status", "unbind"], ["unbound"]]
)
def test_binds_outlive_the_service_that_dies_in_them(singleton: Rig, deaths: list[str]) -> None:
    singleton.engine.deaths = deaths
    assert singleton.call("PUT", BLOBS, entry("f1")) == (204, None)
    assert singleton.call("DELETE", f"{BLOBS}?domain_id=d&blob_id=f1") == (204, None)
    assert singleton.engine.mounts == []
