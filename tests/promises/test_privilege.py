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
        "column = 1 if os.uname().machine == 'aarch64' else 0\n"
        "for name, numbers in privilege.DENIED.items():\n"
        "    if numbers[column] is not None:\n"
        "        result = libc.syscall(numbers[column], 0, 0, 0, 0, 0)\n"
        "        print(name, result, ctypes.get_errno())\n"
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
    column = 1 if os.uname().machine == "aarch64" else 0
    assert len(lines) == sum(numbers[column] is not None for numbers in privilege.DENIED.values())
    assert all(re.fullmatch(r"\w+ -1 1", line) for line in lines), lines


def test_no_call_makes_a_namespace_or_a_device(tmp_path: Path) -> None:
    """Nor in a thread that the C core starts: it begins after the filter, and inherits it."""
    script = (
        "import ctypes, errno, os, signal, sys, threading\n"
        "from nydus_fscache.daemon import privilege\n"
        "privilege.reduce()\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "machine = privilege._MACHINES[os.uname().machine]\n"
        "def said(result):\n"
        "    if result == 0: os._exit(0)\n"
        "    return errno.errorcode[ctypes.get_errno()] if result < 0 else 'done'\n"
        "def tries():\n"
        "    for bit in range(32):\n"
        "        if privilege.NEW_NAMESPACE >> bit & 1:\n"
        "            flags = 1 << bit | signal.SIGCHLD\n"
        "            print('clone', said(libc.syscall(machine.clone, flags, 0, 0, 0, 0)))\n"
        "    words = (ctypes.c_uint64 * 11)(0x10020000, 0, 0, 0, signal.SIGCHLD)\n"
        "    print('clone3', said(libc.syscall(machine.clone3, ctypes.byref(words), 88)))\n"
        "    for mode in (0o020600, 0o060600, 0o010600):\n"
        "        try: os.mknod(sys.argv[1], mode, 0x103); print('mknod done')\n"
        "        except OSError as e: print('mknod', errno.errorcode[e.errno])\n"
        "thread = threading.Thread(target=tries)\n"  # threads are made by clone all the same
        "thread.start(); thread.join()\n"
        "pid = os.posix_spawn('/bin/true', ['true'], {})\n"
        "print('child', os.waitpid(pid, 0)[1])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "node"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert lines == ["clone EPERM"] * 7 + ["clone3 ENOSYS"] + ["mknod EPERM"] * 3 + ["child 0"]


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
