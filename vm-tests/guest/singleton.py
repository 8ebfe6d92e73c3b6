"""In the guest: the calls of nydus-snapshotter in fscache mode against ``nydusd singleton``."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from checks import DISK, IMAGES, check_all, drop_caches
from trees import assert_tree

BASE = DISK / "singleton"
CACHE, ROOT, SOCKET = BASE / "fs", BASE / "root", BASE / "api.sock"
SUPERVISOR = BASE / "supervisor.sock"
START_S = 180.0
NYDUSD = [sys.executable, "-m", "nydus_fscache.cli.nydusd"]


class Unix(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(90)
        self.sock.connect(str(SOCKET))


def call(method: str, target: str, body: Any = None) -> tuple[int, Any]:
    connection = Unix("localhost")
    try:
        connection.request(method, target, None if body is None else json.dumps(body))
        answer = connection.getresponse()
        data = answer.read()
        return answer.status, json.loads(data) if data else None
    finally:
        connection.close()


def start(*options: str) -> subprocess.Popen[bytes]:
    """Returns when the API answers: the first answer is its state."""
    process = subprocess.Popen(
        [*NYDUSD, "singleton", "--fscache", str(CACHE), "--fscache-threads", "4", "--apisock",
         str(SOCKET), "--log-level", "info", "--log-file", str(BASE / "nydusd.log"), *options],
        env={**os.environ, "NYDUS_FSCACHE_ROOT": str(ROOT)},
    )  # fmt: skip
    deadline = time.monotonic() + START_S
    while True:
        try:
            call("GET", "/api/v1/daemon")
            return process
        except OSError:
            assert process.poll() is None, log()
            assert time.monotonic() < deadline, log()
            time.sleep(0.1)


def log() -> str:
    logs = (BASE / "nydusd.log", ROOT / "daemon.log")
    return "\n".join(path.read_text() for path in logs if path.exists())


def entry(name: str, fsid: str, domain: str) -> dict[str, Any]:
    """As the snapshotter sends it: the older form."""
    blobs = {"dir": str(IMAGES / name / "blobs"), "readahead": False}
    return {
        "type": "bootstrap", "id": fsid, "domain_id": domain,
        "config": {
            "id": fsid, "backend_type": "localfs", "backend_config": blobs,
            "cache_type": "fscache", "cache_config": {"work_dir": str(BASE / "work")},
            "prefetch_config": {
                "enable": False, "threads_count": 8, "merging_size": 1048576,
                "bandwidth_rate": 0, "prefetch_all": False,
            },
            "metadata_path": str(IMAGES / name / "image.boot"),
        },
    }  # fmt: skip


def mount(fsid: str, domain: str) -> Path:
    at = BASE / f"m-{fsid}"
    at.mkdir(exist_ok=True)
    options = f"fsid={fsid}" if domain in ("", fsid) else f"domain_id={domain},fsid={fsid}"
    done = subprocess.run(
        ["mount", "-t", "erofs", "-o", options, "erofs", str(at)],
        capture_output=True, text=True, timeout=60, check=False,
    )
    assert done.returncode == 0, f"{done.stderr}\n{log()}"
    return at


def end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0, log()
    assert not SOCKET.exists()


def an_image(name: str, domain: str) -> str:
    """Bind, mount, read, unbind (first, as the snapshotter does), unmount, cull."""
    process = start()
    fsid = "a" * 64
    state = call("GET", "/api/v1/daemon")[1]["state"]
    assert state == "RUNNING", state
    wanted = entry(name, fsid, domain or fsid)
    assert call("PUT", "/api/v2/blobs", wanted) == (204, None), log()
    assert call("PUT", "/api/v2/blobs", wanted) == (204, None), "bound again"
    at = mount(fsid, domain)
    assert_tree(at, IMAGES / name / "expected.jsonl")
    status, metrics = call("GET", f"/api/v1/metrics/blobcache?id=/{fsid}")
    assert status == 200
    assert len(metrics["underlying_files"]) == len(list((IMAGES / name / "blobs").iterdir()))
    key = f"domain_id={domain or fsid}" + (f"&blob_id={fsid}" if domain else "")
    assert call("DELETE", f"/api/v2/blobs?{key}") == (204, None), log()
    subprocess.run(["umount", str(at)], check=True, timeout=60)
    deadline = time.monotonic() + 30
    while call("DELETE", f"/api/v2/blobs?blob_id={fsid}")[0] != 204:
        assert time.monotonic() < deadline, log()
        time.sleep(0.2)
    assert not list((CACHE / "cache").glob(f"*/*/D{fsid}"))
    assert call("DELETE", "/api/v2/blobs?domain_id=never") == (204, None)
    status, error = call("DELETE", "/api/v2/blobs?domain_id=never&blob_id=x")
    assert status == 500
    assert "blob_cache: cache entry not found" in error["message"]
    end(process)
    return "bound, read, culled"


def failover() -> str:
    """The front dies; a supervisor gives its successor the state, and the mount goes on."""
    kept: list[bytes] = []

    def take() -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(SUPERVISOR))
            listener.listen(1)
            listener.settimeout(60)
            connection, _ = listener.accept()
            with connection:
                data, fds, _, _ = socket.recv_fds(connection, 32768, 4)
                whole = data
                while data:
                    data = connection.recv(32768)
                    whole += data
                assert fds, "the supervisor demands a descriptor"
                kept.extend([whole, *(str(fd).encode() for fd in fds)])
        SUPERVISOR.unlink()

    def give() -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(SUPERVISOR))
            listener.listen(1)
            listener.settimeout(60)
            connection, _ = listener.accept()
            with connection:
                socket.send_fds(connection, [kept[0]], [int(kept[1])])
        SUPERVISOR.unlink()

    def while_served(serve: Any, target: str) -> None:
        thread = threading.Thread(target=serve)
        thread.start()
        while not SUPERVISOR.exists():
            time.sleep(0.02)
        assert call("PUT", target) == (204, None), log()
        thread.join(60)

    options = ("--id", "d1", "--supervisor", str(SUPERVISOR))
    process, fsid = start(*options), "b" * 64
    assert call("PUT", "/api/v2/blobs", entry("layers-zstd", fsid, fsid)) == (204, None)
    at = mount(fsid, "")
    while_served(take, "/api/v1/daemon/fuse/sendfd")
    process.kill()
    process.wait()
    (at / "usr").iterdir()
    process = start(*options)
    assert call("GET", "/api/v1/daemon")[1]["state"] == "INIT"
    while_served(give, "/api/v1/daemon/fuse/takeover")
    assert call("PUT", "/api/v1/daemon/start") == (204, None)
    assert call("GET", "/api/v1/daemon")[1]["state"] == "RUNNING"
    drop_caches()
    assert_tree(at, IMAGES / "layers-zstd" / "expected.jsonl")
    assert call("DELETE", f"/api/v2/blobs?domain_id={fsid}") == (204, None)
    subprocess.run(["umount", str(at)], check=True, timeout=60)
    process.terminate()
    process.wait(60)
    return "taken over"


CHECKS = {
    "singleton: an image by fsid": lambda: an_image("layers-zstd", ""),
    "singleton: an image in a domain": lambda: an_image("chunk-dict", "team"),
    "singleton: failover by a supervisor": failover,
}

if __name__ == "__main__":
    for directory in (CACHE, BASE / "work"):
        directory.mkdir(parents=True, exist_ok=True)
    check_all(CHECKS, 240)
