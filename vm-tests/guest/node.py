"""Run by systemd at the end of each of two boots of a node with our package: looks, and says so.

Uses nothing but Python's own library: it is alone in a clean Debian.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

MARK = "@check "
MOUNT, STATE = Path("/mnt/app"), Path("/var/lib/node-tested")
UNIT = "nydus-fscache.service"
FIRST = (
    "unit is active and enabled", "mounted by fstab", "first reads are right",
    "a kill of the whole unit costs a pause", "another image starts no second daemon",
    "a kill of the layer store's unit costs a pause", "the graph driver's unit listens",
)  # fmt: skip
SECOND = (
    "mounted again after a reboot", "read again from the cache", "the shutdown was clean",
    "a stop of the unit unmounts", "the log has no errors of ours",
)  # fmt: skip
CHECKS = (*FIRST, *SECOND)


def said(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise AssertionError(f"{words}: {done.returncode} {done.stdout}{done.stderr}")
    return done.stdout.strip()


def status() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(said("nydus-fscache", "status", "--json"))
    return document


def wrong_files() -> list[str]:
    """Paths whose bytes are not as they should be."""
    wrong = []
    for line in Path("/srv/expected.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if entry["type"] == "reg":
            data = Path(f"{MOUNT}{entry['path']}").read_bytes()
            if hashlib.sha256(data).hexdigest() != entry["sha256"]:
                wrong.append(entry["path"])
    return wrong


def is_mounted(point: Path) -> bool:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return any(line.split()[4] == str(point) and " - erofs " in line for line in lines)


# -- the first boot ------------------------------------------------------------------------------


def unit_is_up() -> str:
    assert said("systemctl", "is-active", UNIT) == "active"
    assert said("systemctl", "is-enabled", UNIT) == "enabled"
    assert said("systemctl", "show", "-P", "Type", UNIT) == "notify"
    main = int(said("systemctl", "show", "-P", "MainPID", UNIT))
    assert main == status()["keeper_pid"]
    return said("systemctl", "show", "-P", "StatusText", UNIT)


def mounted() -> str:
    assert is_mounted(MOUNT), Path("/proc/self/mountinfo").read_text()
    (mount,) = status()["mounts"]
    assert mount["mountpoint"] == str(MOUNT)
    assert said("systemctl", "is-active", "mnt-app.mount") == "active"
    after = said("systemctl", "show", "-P", "After", "mnt-app.mount").split()
    assert UNIT in after, after
    failed = said("systemctl", "show", "-P", "Result", "mnt-none.mount")
    assert failed == "exit-code", failed  # nofail: the boot went on
    return str(mount["transport"])


def first_reads() -> str:
    assert wrong_files() == []
    fetched = sum(blob["fetched"] for blob in status()["blobs"])
    assert fetched > 0
    return f"{fetched} bytes fetched"


def kill() -> str:
    before = status()
    stored = int(said("systemctl", "show", "-P", "NFileDescriptorStore", UNIT))
    assert stored > 3, stored
    with (MOUNT / "app/data/size-1048576").open("rb") as reader:
        said("systemctl", "kill", "--signal=KILL", UNIT)
        os.posix_fadvise(reader.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert len(reader.read()) == 1048576
        assert wrong_files() == []
    after = status()
    assert after["keeper_pid"] != before["keeper_pid"]
    assert [m["mountpoint"] for m in after["mounts"]] == [str(MOUNT)]
    return f"{stored} descriptors were stored"


def no_second_daemon() -> str:
    """The command starts the unit, as its configuration says."""
    keepers = said("systemctl", "show", "-P", "MainPID", UNIT)
    said("systemctl", "stop", UNIT)  # and, before it, the mount that needs it
    assert not is_mounted(MOUNT)
    said("mount", str(MOUNT))
    assert said("systemctl", "is-active", UNIT) == "active"
    now = said("systemctl", "show", "-P", "MainPID", UNIT)
    assert now not in ("0", keepers)
    assert int(now) == status()["keeper_pid"]
    assert wrong_files() == []
    return ""


def layer_store() -> str:
    """systemd holds the connection: a lookup that nobody can answer waits."""
    unit, at = "nydus-fscache-store.service", Path("/var/lib/nydus-store")
    said("systemctl", "start", unit)
    asked = at / "names" / base64.b64encode(b"registry.example/app:1").decode()
    assert asked.is_dir()
    before = said("systemctl", "show", "-P", "MainPID", unit)
    assert said("systemctl", "show", "-P", "NFileDescriptorStore", unit) == "3"
    said("systemctl", "kill", "--signal=KILL", unit)
    assert asked.is_dir()
    assert said("systemctl", "show", "-P", "MainPID", unit) not in ("0", before)
    said("systemctl", "stop", unit)
    assert said("systemctl", "show", "-P", "Result", unit) == "success"
    assert str(at) not in Path("/proc/self/mountinfo").read_text()
    return ""


def graph_driver() -> str:
    unit, at = "nydus-fscache-graphdriver.service", Path("/run/docker/plugins/nydus.sock")
    said("systemctl", "start", unit)
    status = said("systemctl", "show", "-P", "StatusText", unit)
    assert at.is_socket()
    said("systemctl", "stop", unit)
    assert said("systemctl", "show", "-P", "Result", unit) == "success"
    assert not at.exists()
    return status


# -- the second boot -----------------------------------------------------------------------------


def cached() -> str:
    before = sum(blob["fetched"] for blob in status()["blobs"])
    assert wrong_files() == []
    fetched = sum(blob["fetched"] for blob in status()["blobs"]) - before
    assert fetched == 0, f"{fetched} bytes were fetched again"
    return "nothing was fetched"


def clean_shutdown() -> str:
    log = said("journalctl", "-b", "-1", "-u", UNIT, "-u", "mnt-app.mount", "--no-pager")
    tail = log.rpartition("service: mounted /srv/image.boot")[2]
    unmounted = tail.find("mnt-app.mount: Deactivated successfully")
    stopping, stopped = (tail.find(f"{word} {UNIT}") for word in ("Stopping", "Stopped"))
    assert 0 <= unmounted < stopping < stopped, tail
    assert "timed out" not in tail, tail
    assert "Killing" not in tail, tail
    events = [json.loads(line) for line in said("nydus-fscache", "events").splitlines()]
    assert "stopped" in [event["event"] for event in events]
    return ""


def stop() -> str:
    said("systemctl", "stop", UNIT)
    assert not is_mounted(MOUNT)
    assert said("systemctl", "show", "-P", "Result", UNIT) == "success"
    said("systemctl", "start", UNIT)
    assert status()["mounts"] == []
    return ""


def no_errors() -> str:
    events = said("nydus-fscache", "events", "--kind", "error").splitlines()
    # the kill of everything, which the service may have seen the keeper go in
    unexpected = [line for line in events if "the keeper" not in line]
    assert unexpected == [], unexpected
    return f"{len(events)} expected"


RUNS: dict[str, Callable[[], str]] = dict(
    zip(
        CHECKS,
        (unit_is_up, mounted, first_reads, kill, no_second_daemon, layer_store, graph_driver,
         mounted, cached, clean_shutdown, stop, no_errors),
        strict=True,
    )
)  # fmt: skip


def main() -> None:
    first = not STATE.exists()
    for name in FIRST if first else SECOND:
        try:
            ok, detail = True, RUNS[name]()
        except Exception:
            ok, detail = False, traceback.format_exc()[-1500:]
        print(MARK + json.dumps({"name": name, "ok": ok, "detail": detail}), flush=True)
    if not all_is_well(first):
        print(said("sh", "-c", "journalctl -b --no-pager -p info | tail -n 120"), flush=True)
    STATE.touch()
    subprocess.run(["systemctl", "reboot" if first else "poweroff"], check=False)


def all_is_well(first: bool) -> bool:
    return is_mounted(MOUNT) == first


if __name__ == "__main__":
    main()
    sys.stdout.flush()
