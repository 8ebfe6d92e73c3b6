"""An idle node is small: of what a mount or a call needs, its processes have loaded nothing."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
from real_daemon import OURS, named, started

from nydus_fscache.api.client import Client

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="NOT ROOT: no daemon")
PATIENCE_S = 60.0
# Says on demand which modules a process has loaded; stand-ins (deferred.py) are none.
SPY = """
import _thread, os, sys, time

def spy(place):
    while not os.path.exists(f"{place}/ask"):
        time.sleep(0.05)
    loaded = [name for name, module in list(sys.modules.items())
              if module is not None and module.__dict__.get("__spec__") is not None]
    with open(f"{place}/{os.getpid()}.new", "w") as file:
        file.write(" ".join(loaded))
    os.rename(f"{place}/{os.getpid()}.new", f"{place}/{os.getpid()}")

_thread.start_new_thread(spy, (os.environ["SPY"],))
"""
LATE = {
    "argparse", "ast", "dis", "email", "hashlib", "_hashlib", "http.client", "http.server",
    "inspect", "multiprocessing", "pickle", "requests", "shutil", "sqlite3", "ssl", "subprocess",
    "urllib.request",
    "nydus_fscache.http.session", "nydus_fscache.config.nydusd",
}  # fmt: skip
HOST, SERVICE = "nydus_fscache.api.nydusd.host", "nydus_fscache.daemon.main"
# some more than they are; a hundred is 2 MiB
MOST = {HOST: 148, SERVICE: 280}


def test_what_an_idle_node_has_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spies = tmp_path / "spies"
    spies.mkdir()
    (spies / "sitecustomize.py").write_text(SPY)
    monkeypatch.setenv("PYTHONPATH", str(spies))
    monkeypatch.setenv("SPY", str(spies))
    with started(OURS, tmp_path / "d"):
        root = tmp_path / "d" / "root"
        end = time.monotonic() + PATIENCE_S
        while not Client(root).runs():
            assert time.monotonic() < end
            time.sleep(0.05)
        Client(root).call("GET", "/v1/transport")  # when it is known, the start is over
        found = {name: _modules(spies, tmp_path, name) for name in MOST}
    for name, loaded in found.items():
        assert not loaded & LATE, name
        assert len(loaded) <= MOST[name], sorted(loaded)


def _modules(spies: Path, base: Path, name: str) -> set[str]:
    """Of the process with this module as its program."""
    pid = next(
        pid for pid in named(base)
        if name.encode() in (words := Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"))
        and words[0] == sys.executable.encode() and b"-I" not in words
    )  # fmt: skip
    (spies / "ask").touch()
    end = time.monotonic() + PATIENCE_S
    while not (spies / str(pid)).exists():
        assert time.monotonic() < end, name
        time.sleep(0.05)
    return set((spies / str(pid)).read_text().split())
