"""An upgrade under readers: a pause; a version that cannot take over changes nothing."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from pathlib import Path

import pytest
from cold import cold_rounds, service
from rig import Rig, each_transport
from trees import assert_tree

import nydus_fscache
from nydus_fscache.api.client import Client
from nydus_fscache.handover import state

UPGRADES = int(os.environ.get("NYDUS_TEST_UPGRADES", "5"))
DAEMON_ERROR = 9


def other_python(path: Path, lines: str) -> Path:
    """An interpreter that is ours, except for what ``lines`` of shell do."""
    path.write_text(f'#!/bin/sh\n{lines}\nexec {sys.executable} "$@"\n')
    path.chmod(0o755)
    return path


@each_transport
def test_upgraded_under_readers(rig: Rig, golden: Path) -> None:
    longest = 0.0

    def upgrade(pid: int) -> int:
        nonlocal longest
        answer = json.loads(rig.run("upgrade", "--json").stdout)
        assert answer["pid"] != pid
        longest = max(longest, answer["pause_s"])
        new: int = answer["pid"]
        return new

    result = cold_rounds(rig, golden / "images" / "layers-zstd", UPGRADES, upgrade)
    assert "is of the new version" in (rig.root / "daemon.log").read_text()
    print(f"upgraded {result}; until the API answered again at most {longest:.2f} s")


@pytest.mark.parametrize("how", ["exit 3", "exec sleep 60"])
def test_successor_that_does_not_get_ready_is_given_up(
    rig: Rig, golden: Path, how: str, tmp_path: Path
) -> None:
    image = golden / "images" / "one-lz4"
    rig.environment["NYDUS_FSCACHE_START_S"] = "5"
    mount = rig.mount(image / "image.boot", image / "blobs")
    bad = other_python(tmp_path / "python", f'case "$*" in *--ask*) ;; *) {how};; esac')
    done = rig.run("upgrade", "--python", bad, check=False)
    assert done.returncode == DAEMON_ERROR
    assert "serves again" in done.stderr
    assert_tree(mount, image / "expected.jsonl")
    pid, keeper = service(rig)
    rig.run("upgrade")  # and a good one can follow
    new_pid, new_keeper = service(rig)
    assert (new_pid != pid, new_keeper) == (True, keeper)
    assert rig.status()["upgrade_error"] == ""
    rig.run("umount", mount)


@pytest.mark.parametrize("lost", ["service", "keeper", "keeper and service"])
def test_a_kill_after_the_agreement_does_not_undo_it(
    rig: Rig, golden: Path, tmp_path: Path, lost: str
) -> None:
    """An upgrade that the service has agreed to happens, or is said not to have."""
    image = golden / "images" / "one-lz4"
    mount = rig.mount(image / "image.boot", image / "blobs")
    pid, keeper = service(rig)
    python = other_version(tmp_path, "9.9.9")
    if "keeper" in lost:  # it is replaced while the service agrees
        os.kill(keeper, signal.SIGKILL)
    answer = Client(rig.root).call("POST", "/v1/upgrade", {"python": str(python)})
    assert answer == {"old_version": nydus_fscache.__version__, "new_version": "9.9.9", "pid": pid}
    if "service" in lost:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    status = Client(rig.root).wait_for_successor(pid)
    assert (status["version"], status["upgrade_error"]) == ("9.9.9", "")
    assert_tree(mount, image / "expected.jsonl")
    rig.run("umount", mount)


def other_version(base: Path, version: str) -> Path:
    (base / "site").mkdir()
    (base / "site" / "sitecustomize.py").write_text(
        f"import nydus_fscache; nydus_fscache.__version__ = {version!r}"
    )
    return other_python(base / "python", f"export PYTHONPATH={base / 'site'}")


def test_version_that_cannot_read_the_state_is_refused(
    rig: Rig, golden: Path, tmp_path: Path
) -> None:
    image = golden / "images" / "one-lz4"
    mount = rig.mount(image / "image.boot", image / "blobs")
    before = service(rig)
    # another installation, whose code knows only a later state
    other = tmp_path / "other"
    (other / "sitecustomize.py").parent.mkdir()
    (other / "sitecustomize.py").write_text(
        f"import nydus_fscache.handover.state as s; s.VERSION = {state.VERSION + 1}"
    )
    python = other_python(tmp_path / "python", f"export PYTHONPATH={other}")
    done = rig.run("upgrade", "--python", python, check=False)
    assert done.returncode == DAEMON_ERROR
    assert f"is of version {state.VERSION}" in done.stderr
    assert service(rig) == before
    for nonsense in ("/bin/false", "/nonexistent"):
        assert rig.run("upgrade", "--python", nonsense, check=False).returncode in {2, 9}
    assert service(rig) == before
    assert_tree(mount, image / "expected.jsonl")
    rig.run("umount", mount)
