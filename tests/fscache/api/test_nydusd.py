"""nydusd's API as its callers speak it: over a real socket, with an engine of a few lines."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fronts import BLOB, CONFIG, Rig

from nydus_fscache.api.nydusd import documents, service
from nydus_fscache.api.nydusd.front import State
from nydus_fscache.api.nydusd.fscache import NOT_FOUND
from nydus_fscache.cli.nydusd import main
from nydus_fscache.errors import BackendError, BadImage, KernelRefused, UsageError


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


def test_version_text_names_the_commit_that_the_api_names(
    rig: Rig, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    said = capsys.readouterr().out
    commit = next(line for line in said.splitlines() if line.startswith("Git Commit:"))
    assert commit.partition(":")[2].strip() == documents.COMMIT
    status, info = rig.call("GET", "/api/v1/daemon")
    assert status == 200
    assert info["version"]["git_commit"] == documents.COMMIT
    assert set(info["version"]) == {"package_ver", "git_commit", "build_time", "profile", "rustc"}
    assert (info["id"], info["state"]) == ("d1", "RUNNING")


def test_a_mount_appears_and_its_secrets_do_not(rig: Rig) -> None:
    assert rig.mount("/3") == (204, None)
    assert (rig.mountpoint / "3").is_dir()
    backends = rig.call("GET", "/api/v1/daemon")[1]["backend_collection"]
    assert list(backends) == ["/3"]
    assert "dTpw" not in json.dumps(backends)
    assert rig.call("DELETE", "/api/v1/mount?mountpoint=/3") == (204, None)
    assert not (rig.mountpoint / "3").exists()
    assert rig.call("DELETE", "/api/v1/mount?mountpoint=/3")[0] == 500


def test_directories_on_the_way_go_with_the_last_mount(rig: Rig) -> None:
    for name in ("/a/b/1", "/a/2"):
        assert rig.mount(name) == (204, None)
    assert rig.call("DELETE", "/api/v1/mount?mountpoint=/a/b/1") == (204, None)
    assert [path.name for path in (rig.mountpoint / "a").iterdir()] == ["2"]
    assert rig.call("DELETE", "/api/v1/mount?mountpoint=/a/2") == (204, None)
    assert list(rig.mountpoint.iterdir()) == []


def test_a_mount_that_is_there_is_adopted(rig: Rig) -> None:
    assert rig.mount("/3")[0] == 204
    assert rig.mount("/3")[0] == 204
    status, error = rig.mount("/3", "/another.boot")
    assert status == 500
    assert "busy" in error["message"]


def test_a_failed_mount_is_tried_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "PAUSE_S", 0.01)
    rig.engine.failures = [BackendError("away"), BackendError("still away")]
    assert rig.mount("/3") == (204, None)


def test_a_failed_mount_leaves_no_directory(rig: Rig) -> None:
    rig.engine.failures = [BadImage("wrong magic")]
    status, error = rig.mount("/4")
    assert status == 500
    assert error["code"] == "UNDEFINED"
    assert "wrong magic" in error["message"]
    assert not (rig.mountpoint / "4").exists()
    events = rig.call("GET", "/api/v1/daemon/events")[1]
    assert events["total_errors"] == 1
    assert "wrong magic" in events["errors"][0]


def test_a_mount_in_use_stays(rig: Rig) -> None:
    rig.mount("/3")
    rig.engine.busy = True
    status, error = rig.call("DELETE", "/api/v1/mount?mountpoint=/3")
    assert (status, "in use" in error["message"]) == (500, True)
    assert (rig.mountpoint / "3").is_dir()


@pytest.mark.parametrize("name", ["/../x", "/a//b", "/./x", "/a/../b"])
def test_a_name_that_leads_elsewhere_is_refused(rig: Rig, name: str) -> None:
    assert rig.mount(name)[0] == 400
    assert rig.engine.mounts == []


def test_state_machine(tmp_path: Path) -> None:
    rig = Rig(tmp_path, state=State.INIT)
    try:
        assert rig.call("PUT", "/api/v1/daemon/start")[0] == 400
        rig.supervisor.kept = {"entries": []}
        assert rig.call("PUT", "/api/v1/daemon/fuse/takeover") == (204, None)
        assert rig.call("GET", "/api/v1/daemon")[1]["state"] == "READY"
        assert rig.call("PUT", "/api/v1/daemon/fuse/takeover")[0] == 400
        assert rig.call("PUT", "/api/v1/daemon/start") == (204, None)
        assert rig.call("GET", "/api/v1/daemon")[1]["state"] == "RUNNING"
        assert rig.call("PUT", "/api/v1/daemon/start")[0] == 400
        assert rig.call("PUT", "/api/v1/daemon/exit") == (204, None)
        assert rig.front.exit_asked.is_set()
    finally:
        rig.listener.close()


def test_a_successor_is_given_the_mounts(rig: Rig, tmp_path: Path) -> None:
    rig.mount("/3")
    assert rig.call("PUT", "/api/v1/daemon/fuse/sendfd") == (204, None)
    (tmp_path / "next").mkdir()
    following = Rig(tmp_path / "next", state=State.INIT)
    try:
        following.supervisor.kept = rig.supervisor.kept
        assert following.call("PUT", "/api/v1/daemon/fuse/takeover") == (204, None)
        assert list(following.call("GET", "/api/v1/daemon")[1]["backend_collection"]) == ["/3"]
    finally:
        following.listener.close()


def test_metrics_are_found_with_and_without_the_slash(rig: Rig) -> None:
    assert rig.call("GET", "/api/v1/metrics/blobcache")[0] == 404
    rig.mount("/3")
    rig.mount("/4", "/b.boot")
    for wanted in ("?id=/3", "?id=3"):
        status, found = rig.call("GET", f"/api/v1/metrics/blobcache{wanted}")
        assert (status, found["underlying_files"]) == (200, [f"{BLOB}.blob.data"])
    assert rig.call("GET", "/api/v1/metrics/blobcache")[0] == 404, "of two, none is meant"
    found = rig.call("GET", "/api/v1/metrics?id=/3")[1]
    assert (len(found["fop_hits"]), len(found["block_count_read"])) == (15, 8)
    assert rig.call("GET", "/api/v1/metrics/inflight") == (204, None)


def test_hot_credentials_reach_the_registry_of_the_image(rig: Rig) -> None:
    rig.mount("/3")
    assert rig.call("PUT", "/api/v1/config?id=/3", {"registry_auth": "bmV3"}) == (204, None)
    assert rig.engine.logins == [{"host": "registry.example", "auth": "bmV3"}]
    assert rig.call("GET", "/api/v1/config?id=/3") == (200, {"registry_auth": "bmV3"})
    assert rig.call("GET", "/api/v1/config") == (200, {"/3:registry_auth": "bmV3"})
    assert rig.call("PUT", "/api/v1/config?id=/3", {"no_such_key": "x"})[0] == 500


@pytest.mark.parametrize(
    ("method", "target", "body", "status"),
    [
        ("GET", "/nowhere", None, 404),
        ("GET", "/api/v1/mount", None, 400),
        ("POST", "/api/v1/mount?mountpoint=/3", None, 400),
        ("POST", "/api/v1/mount?mountpoint=/3", b"{", 400),
        ("POST", "/api/v1/mount?mountpoint=/3", b"[]", 400),
        ("POST", "/api/v1/mount", {"fs_type": "rafs", "source": "x", "config": CONFIG}, 400),
        ("PUT", "/api/v1/daemon/start", b"{}", 400),
        ("PUT", "/api/v1/daemon", {"log_level": "loud"}, 500),
        ("PUT", "/api/v1/daemon", {"log_level": "DEBUG"}, 204),
        ("PUT", "/api/v2/blobs", {}, 400),
        ("PUT", "/api/v2/blobs", {"type": "bootstrap"}, 501),
        ("GET", "/api/v1/metrics/files", None, 404),
        ("GET", "/api/v1/daemon/backend", None, 400),
        ("GET", "//api/v1/daemon", None, 404),
        ("PUT", "/api/v1/daemon", {}, 400),
        ("OPTIONS", "/api/v1/daemon", None, 400),
        ("PUT", "/api/v1/config?id=x", b" " * 60000, 413),
    ],
)
def test_odd_calls(rig: Rig, method: str, target: str, body: Any, status: int) -> None:
    found, document = rig.call(method, target, body)
    assert found == status
    if status != 204:
        assert set(document) == {"code", "message"}
    assert rig.call("GET", "/api/v1/daemon")[0] == 200


def test_an_idle_connection_holds_up_nobody_and_stays(rig: Rig) -> None:
    with socket.socket(socket.AF_UNIX) as idle:
        idle.connect(str(rig.path))
        threads = [threading.Thread(target=rig.mount, args=(f"/{i}",)) for i in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(rig.engine.mounts) == 20
        idle.sendall(b"GET /api/v1/daemon HTTP/1.1\r\nHost: x\r\n\r\n")
        assert idle.recv(20).startswith(b"HTTP/1.1 200 ")


def test_images_by_fsid(singleton: Rig) -> None:
    entry = {
        "type": "bootstrap", "id": "f1", "domain_id": "d",
        "config": {
            "backend_type": "registry", "cache_type": "fscache", "cache_config": {},
            "backend_config": {"host": "registry.example", "repo": "a/b", "auth": "dTpw"},
            "metadata_path": "/image.boot",
        },
    }  # fmt: skip
    call = singleton.call
    assert call("PUT", "/api/v2/blobs", entry) == (204, None)
    assert call("PUT", "/api/v2/blobs", entry) == (204, None), "again, with new credentials"
    assert singleton.engine.logins == [{"host": "registry.example", "auth": "dTpw"}]
    assert call("PUT", "/api/v2/blobs", {**entry, "type": "datablob"})[0] == 500
    assert call("PUT", "/api/v2/blobs", {**entry, "id": "a/b"})[0] == 400
    assert call("PUT", "/api/v2/blobs", {"type": "bootstrap", "id": "x"})[0] == 400
    assert call("GET", "/api/v1/metrics")[0] == 404
    assert call("GET", "/api/v1/metrics/blobcache?id=/f1")[1]["underlying_files"]
    assert call("POST", "/api/v1/mount?mountpoint=/3", {"a": 1})[0] == 501
    status, error = call("DELETE", "/api/v2/blobs?domain_id=d&blob_id=other")
    assert (status, NOT_FOUND in error["message"]) == (500, True)
    assert call("DELETE", "/api/v2/blobs?domain_id=nobody") == (204, None)
    singleton.engine.busy = True
    assert call("DELETE", "/api/v2/blobs?domain_id=d&blob_id=f1")[0] == 500
    singleton.engine.busy = False
    assert call("DELETE", "/api/v2/blobs?domain_id=d") == (204, None)
    assert singleton.engine.mounts == []
    assert call("DELETE", "/api/v2/blobs?blob_id=f1") == (204, None)
    singleton.engine.busy = True
    assert call("DELETE", "/api/v2/blobs?blob_id=f1")[0] == 500
    assert call("DELETE", "/api/v2/blobs")[0] == 400


def test_the_snapshot_names_its_fsid(singleton: Rig) -> None:
    fsid = documents.fsid_of_snapshot("42")
    entry = {
        "type": "bootstrap", "id": fsid, "domain_id": fsid,
        "config_v2": {
            "version": 2, "backend": {"type": "localfs", "localfs": {"dir": "/b"}},
            "cache": {"type": "fscache", "fscache": {"work_dir": "/w"}},
            "metadata_path": "/image.boot",
        },
    }  # fmt: skip
    assert singleton.call("PUT", "/api/v2/blobs", entry) == (204, None)
    for wanted in (fsid, f"/{fsid}", "/42", "42"):
        assert singleton.call("GET", f"/api/v1/metrics/blobcache?id={wanted}")[0] == 200


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fuse"], "--mountpoint"),
        (["virtiofs", "--sock", "x"], "nydus-image export"),
        (["singleton"], "--fscache"),
        (["fuse", "--mountpoint", "/", "--bootstrap", "x"], "--config"),
        (["fuse", "--mountpoint", "/", "--upgrade"], "--supervisor"),
        (["--mountpoint", "/no/such/place"], "not a directory"),
        (["fuse", "--mountpoint", "/", "--prefetch-files", "x"], "--bootstrap"),
    ],
)
def test_command_lines_that_cannot_be(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == UsageError.exit_code
    assert said in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0, reason="NOT ROOT: no daemon")
def test_a_front_costs_no_interpreter(tmp_path: Path) -> None:
    """Below a MiB each, however many there are; and SIGTERM ends it cleanly."""
    environment = {**os.environ, "NYDUS_FSCACHE_ROOT": str(tmp_path / "root")}
    program = Path(sys.executable).with_name("nydusd")
    fronts = []
    try:
        for number in range(3):
            point = tmp_path / f"m{number}"
            point.mkdir()
            api = tmp_path / f"{number}.sock"
            fronts.append(
                subprocess.Popen(
                    [program, "fuse", "--mountpoint", point, "--apisock", api], env=environment
                )
            )
            deadline = time.monotonic() + 60
            while not api.exists():
                assert time.monotonic() < deadline
                time.sleep(0.02)
        for front in fronts:
            deadline = time.monotonic() + 30
            # it becomes the small program after its start, which then says how it ends
            while _pss_kib(front.pid) > 1024 or not _catches_sigterm(front.pid):
                assert time.monotonic() < deadline, _pss_kib(front.pid)
                time.sleep(0.02)
    finally:
        for front in fronts:
            front.terminate()
        codes = [front.wait(60) for front in fronts]
    assert codes == [0, 0, 0]
    assert not list(tmp_path.glob("*.sock"))
    deadline = time.monotonic() + 60
    while (tmp_path / "root" / "api.sock").exists():  # nor does the daemon that they prepared stay
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _catches_sigterm(pid: int) -> bool:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    caught = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:"))
    return bool(caught >> (signal.SIGTERM - 1) & 1)


def _pss_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def test_a_remount_that_fails_leaves_the_old_mount(rig: Rig) -> None:
    assert rig.mount("/3") == (204, None)
    rig.engine.failures = [BadImage("wrong magic")]
    body = {"fs_type": "rafs", "source": "/new.boot", "config": CONFIG}
    assert rig.call("PUT", "/api/v1/mount?mountpoint=/3", body)[0] == 500
    assert [m["image"] for m in rig.engine.mounts] == ["/image.boot"]
    assert (rig.mountpoint / "3").is_dir()


@pytest.mark.parametrize(
    ("prefetch", "files", "done"),
    [
        ({"enable": True, "prefetch_all": True}, ["/a", "/b"], [["/a", "/b"], "all"]),
        ({"enable": True, "prefetch_all": False}, ["/a", "/gone"], [["/a"]]),
        ({"enable": False}, ["/a"], []),
        ({"enable": True, "prefetch_all": True}, [], []),
    ],
)
def test_prefetch_files_come_first(
    rig: Rig, prefetch: dict[str, Any], files: list[str], done: list[Any]
) -> None:
    config = json.dumps({**json.loads(CONFIG), "fs_prefetch": prefetch})
    body = {"fs_type": "rafs", "source": "/i", "config": config, "prefetch_files": files}
    assert rig.call("POST", "/api/v1/mount?mountpoint=/3", body) == (204, None)
    assert rig.engine.prefetches == done


def test_a_whole_domain_is_always_unbound(singleton: Rig) -> None:
    entry = {
        "type": "bootstrap", "id": "f1", "domain_id": "d",
        "config_v2": {
            "version": 2, "backend": {"type": "localfs", "localfs": {"dir": "/b"}},
            "cache": {"type": "fscache", "fscache": {"work_dir": "/w"}}, "metadata_path": "/i",
        },
    }  # fmt: skip
    assert singleton.call("PUT", "/api/v2/blobs", entry) == (204, None)
    singleton.engine.busy = True
    assert singleton.call("DELETE", "/api/v2/blobs?domain_id=d") == (204, None)
    assert singleton.call("GET", "/api/v1/daemon/events")[1]["total_errors"] == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="NOT ROOT: no daemon")
@pytest.mark.skipif(Path("/dev/cachefiles").exists(), reason="this kernel may serve it")
def test_singleton_does_not_start_where_the_kernel_cannot_serve(tmp_path: Path) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("nydusd"), "singleton", "--fscache", tmp_path,
         "--apisock", tmp_path / "api.sock"],
        env={**os.environ, "NYDUS_FSCACHE_ROOT": str(tmp_path / "root")},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == KernelRefused.exit_code
    assert "/dev/cachefiles" in done.stderr
    assert "hint:" in done.stderr
    assert not (tmp_path / "api.sock").exists()
