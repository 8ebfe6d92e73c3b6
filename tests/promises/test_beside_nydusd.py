"""The API of ``nydusd fuse`` against the original's, call by call: status, document, error.

Every difference is named in ``DIFFERENT`` or ``OTHER_MEMBERS``, with its reason in docs/nydusd.md;
one that is named and is gone fails, too.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from keeping import Keeping
from real_daemon import OURS, Answer, Daemon, ask, environment, original, started

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="NOT ROOT: no mounts")

Body = Callable[[Daemon], Any] | dict[str, Any] | bytes | None
MOUNT, DAEMON, BLOBS = "/api/v1/mount", "/api/v1/daemon", "/api/v2/blobs"
METRICS = "/api/v1/metrics"
TAKEOVER, SENDFD = f"{DAEMON}/fuse/takeover", f"{DAEMON}/fuse/sendfd"
ENTRY = {
    "type": "bootstrap", "id": "x", "domain_id": "d",
    "config_v2": {
        "version": 2, "backend": {"type": "localfs", "localfs": {"dir": "/tmp"}},
        "cache": {"type": "fscache", "fscache": {"work_dir": "/tmp"}}, "metadata_path": "/x",
    },
}  # fmt: skip

# Labels of calls whose status differs, and why; docs/nydusd.md, "Beside the original".
DIFFERENT = {
    "the same image again": "adopted, for a daemon that starts anew",
    "id without slash, metrics": "accepted",
    "id without slash, blobcache": "accepted",
    "backend of localfs": "ours counts it",
    "passthrough": "only images are served",
    "passthrough gone": "only images are served",
    "entry of the other mode": "refused before it is read",
    "events after errors": "ours has failed mounts there",
    "level loud": "ours names the level",
    "hot configuration": "of nydusd 2.4",
    "hot configuration, set": "of nydusd 2.4",
    "too large": "413, as nydusd 2.4",
    "a name that leads up": "not a name below the mountpoint",
    "a name with an empty part": "not a name below the mountpoint",
}
# Members that nydusd 2.4 has, and the crate's 2.2 has not.
NEWER = {
    "stream_prefetch", "external_backends", "overlay", "batch_size", "enable_encryption",
    "enable_convergent_encryption", "encryption_key", "blob_device_table_count",
    "blob_device_table_offset",
}  # fmt: skip
# Values that are each one's own; their types are compared.
OWN = {
    "version", "mounted_time", "store_path", "entries_count", "batch_size", "threads", "work_dir",
    "underlying_files",
}  # fmt: skip
# Of an error's text only its nesting is an interface, with the words that callers look for.
_QUOTED = re.compile(r'\(".*"(, line: \d+, column: \d+)?', re.DOTALL)
SAME_WORDS = ("object or filesystem", "missing field", "should be specified")


def image(golden: Path) -> Path:
    return golden / "images" / "layers-zstd"


def config(daemon: Daemon, golden: Path, name: str) -> str:
    return json.dumps(
        {
            "device": {
                "id": name,
                "backend": {
                    "type": "localfs", "config": {"dir": str(image(golden) / "blobs")},
                },
                "cache": {"type": "filecache", "config": {"work_dir": str(daemon.cache)}},
            },
            "mode": "direct", "digest_validate": False, "enable_xattr": True,
            "fs_prefetch": {
                "enable": False, "threads_count": 8, "merging_size": 131072, "prefetch_all": True,
            },
        }
    )  # fmt: skip


def calls(golden: Path) -> Iterator[tuple[str, str, str, Body]]:
    """Label, method, target and body, in the order in which they are made."""

    def mount(name: str, **changed: Any) -> Body:
        return lambda daemon: {
            "fs_type": "rafs", "source": str(image(golden) / "image.boot"),
            "config": config(daemon, golden, name), "prefetch_files": None, **changed,
        }  # fmt: skip

    yield "info", "GET", DAEMON, None
    yield "info of v2", "GET", "/api/v2/daemon", None
    yield "events", "GET", f"{DAEMON}/events", None
    for what in ("", "/files", "/pattern", "/inflight", "/backend", "/blobcache"):
        yield f"no mount{what}", "GET", f"{METRICS}{what}", None
        yield f"unknown{what}", "GET", f"{METRICS}{what}?id=/1", None
    yield "backend of nothing", "GET", f"{DAEMON}/backend", None
    yield "backend of a stranger", "GET", f"{DAEMON}/backend?mountpoint=/1", None
    yield "hot configuration", "GET", "/api/v1/config?id=/1", None
    yield "hot configuration, set", "PUT", "/api/v1/config?id=/1", {"registry_auth": "dTpw"}

    yield "unmount of nothing", "DELETE", f"{MOUNT}?mountpoint=/1", None
    yield "unmount without a name", "DELETE", MOUNT, None
    yield "unmount of an empty name", "DELETE", f"{MOUNT}?mountpoint=", None
    yield "remount of nothing", "PUT", f"{MOUNT}?mountpoint=/1", mount("/1")
    yield "mount without a name", "POST", MOUNT, mount("/1")
    yield "mount without a body", "POST", f"{MOUNT}?mountpoint=/1", None
    for body in (b"{", b"[]", b"{}", b"5", b"\xff", b'{"source": "x"}'):
        yield f"mount {body!r}", "POST", f"{MOUNT}?mountpoint=/1", body
    yield "source is a number", "POST", f"{MOUNT}?mountpoint=/1", mount("/1", source=5)
    for kind in ("", "ext4"):
        yield f"mount of {kind!r}", "POST", f"{MOUNT}?mountpoint=/1", mount("/1", fs_type=kind)
    for name, changed in {
        "no bootstrap": {"source": "/no/such/file"}, "a text": {"source": "/etc/passwd"},
        "no configuration": {"config": ""}, "empty configuration": {"config": "{}"},
        "relative prefetch": {"prefetch_files": ["a"]},
    }.items():  # fmt: skip
        yield name, "POST", f"{MOUNT}?mountpoint=/1", mount("/1", **changed)
    yield "a name without a slash", "POST", f"{MOUNT}?mountpoint=1", mount("/1")
    yield "after errors", "GET", DAEMON, None
    yield "events after errors", "GET", f"{DAEMON}/events", None

    yield "mount", "POST", f"{MOUNT}?mountpoint=/1", mount("/1")
    yield "the same image again", "POST", f"{MOUNT}?mountpoint=/1", mount("/1")
    yield "info with a mount", "GET", DAEMON, None
    yield "info with a mount, v2", "GET", "/api/v2/daemon", None
    for what in ("", "/files", "/pattern", "/blobcache"):
        yield f"the only one{what}", "GET", f"{METRICS}{what}", None
        yield f"named{what}", "GET", f"{METRICS}{what}?id=/1", None
        yield f"another{what}", "GET", f"{METRICS}{what}?id=/2", None
    yield "latest files", "GET", f"{METRICS}/files?id=/1&latest=true", None
    yield "named, encoded", "GET", f"{METRICS}?id=%2F1", None
    yield "inflight", "GET", f"{METRICS}/inflight", None
    yield "backend of localfs", "GET", f"{METRICS}/backend?id=/1", None
    yield "id without slash, metrics", "GET", f"{METRICS}?id=1", None
    yield "id without slash, blobcache", "GET", f"{METRICS}/blobcache?id=1", None
    yield "super block", "GET", f"{DAEMON}/backend?mountpoint=/1", None
    yield "super block of another", "GET", f"{DAEMON}/backend?mountpoint=/2", None

    yield "a second", "POST", f"{MOUNT}?mountpoint=/2", mount("/2")
    yield "two, none named", "GET", METRICS, None
    yield "two, none named, blobcache", "GET", f"{METRICS}/blobcache", None
    yield "remount", "PUT", f"{MOUNT}?mountpoint=/2", mount("/2")
    yield "below a directory", "POST", f"{MOUNT}?mountpoint=/a/b", mount("/a/b")
    yield "below a directory, gone", "DELETE", f"{MOUNT}?mountpoint=/a/b", None
    yield "with prefetch", "POST", f"{MOUNT}?mountpoint=/p", mount("/p", prefetch_files=["/etc"])
    yield "with prefetch, gone", "DELETE", f"{MOUNT}?mountpoint=/p", None
    yield "a name that leads up", "POST", f"{MOUNT}?mountpoint=/../up", mount("/up")
    yield "a name with an empty part", "POST", f"{MOUNT}?mountpoint=/x//y", mount("/xy")
    through = {"fs_type": "passthrough_fs", "source": "/etc", "config": ""}
    yield "passthrough", "POST", f"{MOUNT}?mountpoint=/pass", through
    yield "passthrough gone", "DELETE", f"{MOUNT}?mountpoint=/pass", None
    yield "unmount with a body", "DELETE", f"{MOUNT}?mountpoint=/2", b"{}"
    yield "unmount", "DELETE", f"{MOUNT}?mountpoint=/2", None
    yield "unmount again", "DELETE", f"{MOUNT}?mountpoint=/2", None

    for level in ("loud", "DEBUG", "info"):
        yield f"level {level}", "PUT", DAEMON, {"log_level": level}
    for body in (b"{}", b"x", None):
        yield f"level {body!r}", "PUT", DAEMON, body
    yield "level of v2", "PUT", "/api/v2/daemon", {"log_level": "info"}
    yield "start again", "PUT", f"{DAEMON}/start", None
    yield "start with a body", "PUT", f"{DAEMON}/start", b"{}"
    yield "send", "PUT", SENDFD, None
    yield "send with a body", "PUT", SENDFD, b"{}"
    yield "take over while running", "PUT", TAKEOVER, None
    yield "exit with a body", "PUT", f"{DAEMON}/exit", b"{}"

    yield "bind nothing", "PUT", BLOBS, {}
    yield "bind without a body", "PUT", BLOBS, None
    yield "bind", "PUT", BLOBS, ENTRY
    entry = {"type": "bootstrap", "id": "x", "config": {}}
    yield "entry of the other mode", "PUT", BLOBS, entry
    for query in ("", "?domain_id=x", "?blob_id=x", "?domain_id=x&blob_id=y"):
        yield f"unbind {query}", "DELETE", f"{BLOBS}{query}", None

    for path in ("/", "/nowhere", "/api/v1", f"{DAEMON}/", f"/{DAEMON}", "*"):
        yield f"path {path}", "GET", path, None
    yield "absolute", "GET", "http://localhost/api/v2/daemon", None
    yield "with a query", "GET", "/api/v2/daemon?x=y", None
    yield "with a body", "GET", DAEMON, b"{}"
    for method in ("HEAD", "PATCH", "POST", "DELETE"):
        yield f"{method}", method, DAEMON, None
    yield "mount, asked", "GET", f"{MOUNT}?mountpoint=/1", None
    yield "mount, asked without a name", "GET", MOUNT, None
    yield "OPTIONS", "OPTIONS", DAEMON, None
    yield "BREW", "BREW", DAEMON, None
    yield "large", "POST", f"{MOUNT}?mountpoint=/3", b" " * 51200
    yield "too large", "POST", f"{MOUNT}?mountpoint=/3", b" " * 51201


def told(answer: Answer) -> Any:
    """An answer without what is each one's own."""
    status, document = answer
    if status >= 300:
        if not isinstance(document, dict):  # of the original's HTTP library
            return status
        message = document["message"]
        words = [word for word in SAME_WORDS if word in message]
        return status, document["code"], _QUOTED.sub('("…"', message), words
    return status, _told(document)


def _told(document: Any) -> Any:
    if isinstance(document, dict):
        return {
            name: _kind(value) if name in OWN else _told(value)
            for name, value in document.items() if name not in NEWER
        }  # fmt: skip
    if isinstance(document, list):
        return [_told(value) for value in document]
    return document


def _kind(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _kind(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_kind(one) for one in value]
    return type(value).__name__


def _same(ours: Any, theirs: Any) -> bool:
    """An error's body of the original's HTTP library is not a document; its status counts."""
    if isinstance(theirs, int):
        return (ours if isinstance(ours, int) else ours[0]) == theirs
    return ours == theirs


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[Daemon, Daemon]]:
    """Ours and the original."""
    theirs_program, base = original(), Path(f"/var/tmp/nfb{os.getpid()}")
    with (
        started(OURS, base / "ours") as ours,
        started(theirs_program, base / "theirs") as theirs,
    ):
        yield ours, theirs
    base.rmdir()


def test_every_call(both: tuple[Daemon, Daemon], golden: Path) -> None:
    differences, same = [], []
    for label, method, target, body in calls(golden):
        ours, theirs = (
            told(daemon.ask(method, target, body(daemon) if callable(body) else body))
            for daemon in both
        )
        if label in DIFFERENT:
            if _same(ours, theirs):
                same.append(label)
        elif not _same(ours, theirs):
            differences.append(f"{label}: {method} {target}\n  ours:   {ours}\n  theirs: {theirs}")
    assert not differences, "\n".join(differences)
    assert not same, f"named as different, and are not: {same}"


def test_documents_after_reading(both: tuple[Daemon, Daemon], golden: Path) -> None:
    """Counters differ; their names and shapes do not."""
    shapes = []
    for daemon in both:
        status, said = daemon.ask(
            "POST", f"{MOUNT}?mountpoint=/read",
            {"fs_type": "rafs", "source": str(image(golden) / "image.boot"),
             "config": config(daemon, golden, "/read")},
        )  # fmt: skip
        assert status == 204, said
        files = [path for path in (daemon.point / "read").rglob("*") if path.is_file()]
        assert sum(len(path.read_bytes()) for path in files[:200] if not path.is_symlink())
        found = {
            what: _kind(_told(daemon.ask("GET", f"{METRICS}{what}?id=/read")[1]))
            for what in ("", "/files", "/pattern", "/blobcache")
        }
        shapes.append(found)
        assert daemon.ask("DELETE", f"{MOUNT}?mountpoint=/read") == (204, None)
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("data", "statuses"),
    [
        (b"\0\1\2\3garbage\r\n\r\n", {400}),
        (b"\r\n\r\n", {400}),
        (b"GET http://[ HTTP/1.1\r\n\r\n", {400}),
        (b"GET /api/v1/daemon\r\n\r\n", {400}),
        (b"GET /api/v1/daemon/events HTTP/1.0\r\n\r\n", {200}),
        (b"GET /api/v1/daemon/events HTTP/2.0\r\n\r\n", {400}),
        (b"get /api/v1/daemon/events HTTP/1.1\r\n\r\n", {400}),
        (b"GET /api/v1/daemon/events HTTP/1.1\r\nHost: x\r\n\r\n" * 3, {200}),
        (b"GET /" + b"a" * 70000 + b" HTTP/1.1\r\n\r\n", {400}),
        (b"GET /api/v1/daemon HTTP/1.1\r\nX: " + b"a" * 70000 + b"\r\n\r\n", {400}),
        (b"PUT /api/v1/daemon HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", {400}),
        (b"PUT /api/v1/daemon HTTP/1.1\r\nContent-Length: -5\r\n\r\n", {400}),
        (b"PUT /api/v1/daemon HTTP/1.1\r\nContent-Length: abc\r\n\r\n", {400}),
        (b"PUT /api/v1/daemon HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
         {400, 413}),
    ],
)  # fmt: skip
def test_bytes_that_are_no_call(
    both: tuple[Daemon, Daemon], data: bytes, statuses: set[int]
) -> None:
    """Both answer, at once; and go on."""
    for daemon in both:
        answer = daemon.send(data)
        found = {int(code) for code in re.findall(rb"HTTP/1\.1 (\d+) ", answer)}
        assert found, f"no answer from {daemon.base.name}"
        assert found & statuses, answer[:400]
        if daemon is both[0]:  # the original takes the rest of a long line for a request
            assert found <= statuses, answer[:400]
            asked = data.count(b"GET ") if statuses == {200} else 0
            assert answer.count(b"HTTP/1.1 200 ") == asked
        assert daemon.ask("GET", f"{DAEMON}/events")[0] == 200


def test_an_idle_connection_and_many_at_once(both: tuple[Daemon, Daemon]) -> None:
    for daemon in both:
        with socket.socket(socket.AF_UNIX) as idle:
            idle.connect(str(daemon.api))
            with ThreadPoolExecutor(40) as pool:
                found = list(pool.map(ask, [daemon.api] * 40, ["GET"] * 40, [DAEMON] * 40))
            assert [status for status, _ in found] == [200] * 40
            idle.settimeout(10)
            idle.sendall(f"GET {DAEMON} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert idle.recv(20).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("whose", ["ours", "theirs"])
def test_dedicated(whose: str, golden: Path) -> None:
    """The image is on the command line; the first answer is RUNNING, with it mounted."""
    program = OURS if whose == "ours" else original()
    base = Path(f"/var/tmp/nfd{os.getpid()}")
    base.mkdir()
    try:
        made = Daemon(base / whose, None)  # type: ignore[arg-type]
        (base / "config").write_text(config(made, golden, "d"))
        boot = image(golden) / "image.boot"
        words = ("--config", str(base / "config"), "--bootstrap", str(boot))
        with started(program, base / whose, *words, answers=False) as daemon:
            while True:
                with contextlib.suppress(OSError):
                    status, info = daemon.ask("GET", DAEMON)
                    break
                assert daemon.process.poll() is None, daemon.log()
                time.sleep(0.01)
            assert (status, info["state"]) == (200, "RUNNING")
            assert list(info["backend_collection"]) == ["/"]
            assert (daemon.point / "etc").is_dir()
            status, found = daemon.ask("GET", f"{METRICS}/blobcache")
            assert (status, len(found["underlying_files"])) == (200, 3)
            assert daemon.ask("GET", METRICS)[1]["id"] == "/"
            assert daemon.ask("PUT", f"{DAEMON}/exit") == (204, None)
            assert daemon.process.wait(30) == 0
            assert not daemon.api.exists()
    finally:
        (base / "config").unlink()
        base.rmdir()


def _state(daemon: Daemon) -> str:
    with contextlib.suppress(OSError):
        return str(daemon.ask("GET", DAEMON)[1]["state"])
    return ""


def test_failover(golden: Path) -> None:
    """The same command after a kill waits in INIT, and goes on with what a supervisor kept.

    Ours alone: the crate's 2.2.0 answers 204 to ``sendfd`` and connects to no supervisor."""
    base = Path(f"/var/tmp/nff{os.getpid()}")
    keeping = Keeping(base / "supervisor.sock")
    base.mkdir()
    try:
        words = ("--id", "d1", "--supervisor", str(keeping.path))
        with started(OURS, base / "ours", *words) as daemon:
            info = daemon.ask("GET", DAEMON)[1]
            assert (info["id"], info["supervisor"]) == ("d1", str(keeping.path))
            assert _state(daemon) == "RUNNING"
            body = {
                "fs_type": "rafs", "source": str(image(golden) / "image.boot"),
                "config": config(daemon, golden, "/1"),
            }  # fmt: skip
            assert daemon.ask("POST", f"{MOUNT}?mountpoint=/1", body) == (204, None)
            assert keeping.take(daemon) == (204, None)
            daemon.process.kill()
            daemon.process.wait()
            again = subprocess.Popen(
                daemon.process.args, env=environment(daemon.base), stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )  # fmt: skip
            daemon.process = again
            end = time.monotonic() + 30
            while _state(daemon) != "INIT":
                assert time.monotonic() < end, _state(daemon)
                time.sleep(0.02)
            assert daemon.ask("PUT", f"{DAEMON}/start")[0] == 400
            assert keeping.give(daemon) == (204, None)
            assert _state(daemon) == "READY"
            assert daemon.ask("PUT", TAKEOVER)[0] == 400
            assert daemon.ask("PUT", f"{DAEMON}/start") == (204, None)
            assert _state(daemon) == "RUNNING"
            assert list(daemon.ask("GET", DAEMON)[1]["backend_collection"]) == ["/1"]
            assert (daemon.point / "1" / "etc").is_dir()
            assert daemon.ask("DELETE", f"{MOUNT}?mountpoint=/1") == (204, None)
    finally:
        keeping.close()
        keeping.path.unlink(missing_ok=True)
        base.rmdir()
