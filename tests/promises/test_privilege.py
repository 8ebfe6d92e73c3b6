"""The service runs with what it needs and no more."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

from rig import Rig

from nydus_fscache.daemon import privilege


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_every_thread_of_the_service_is_reduced(rig: Rig, golden: Path) -> None:
    image = golden / "images" / "one-lz4"
    rig.mount(image / "image.boot", image / "blobs")
    service = rig.status()["pid"]
    kept = sum(1 << c for c in privilege.KEPT)
    threads = [int(p.name) for p in Path(f"/proc/{service}/task").iterdir()]
    assert len(threads) > 2
    for thread in threads:
        status = _status(thread)
        for name in ("CapEff", "CapPrm", "CapBnd"):
            assert int(status[name], 16) == kept, (name, status[name])
        assert status["NoNewPrivs"] == "1"
        assert status["Seccomp"] == "2"


def test_only_root_reaches_socket_and_state(rig: Rig, golden: Path) -> None:
    image = golden / "images" / "one-lz4"
    rig.mount(image / "image.boot", image / "blobs")
    for path in [rig.root, *rig.root.rglob("*")]:
        status = path.lstat()
        assert status.st_uid == 0
        # the socket's directory and the socket itself both refuse others
        assert not stat.S_IMODE(status.st_mode) & 0o077, path


def test_denied_calls_fail_and_others_do_not() -> None:
    script = (
        "import ctypes, os\n"
        "from nydus_fscache.daemon import privilege\n"
        "privilege.reduce()\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "for name, number in zip(privilege.DENIED, privilege._MACHINES[os.uname().machine][3]):\n"
        "    result = libc.syscall(number, 0, 0, 0, 0, 0)\n"
        "    print(name, result, ctypes.get_errno())\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    os.execv('/bin/true', ['true'])\n"
        "print('child', os.waitpid(pid, 0)[1])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    lines = done.stdout.splitlines()
    assert lines.pop() == "child 0"
    assert len(lines) == len(privilege.DENIED)
    assert all(re.fullmatch(r"\w+ -1 1", line) for line in lines), lines


def test_a_foreign_number_range_is_denied() -> None:
    """x86's second table of calls (x32) is no way around the filter."""
    if os.uname().machine != "x86_64":
        return
    script = (
        "import ctypes\n"
        "from nydus_fscache.daemon import privilege\n"
        "privilege.reduce()\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "print(libc.syscall(0x40000000 | 39), ctypes.get_errno())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["-1", "1"]
