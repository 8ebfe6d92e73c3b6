"""What the keeper tells systemd, and what of it is too much."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from nydus_fscache.handover.systemd import Unit


def test_a_store_that_is_full_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """systemd drops what is too much, and says so to nobody."""
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(os.fspath(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", os.fspath(tmp_path / "notify"))
    monkeypatch.setenv("FDSTORE", "2")
    unit = Unit()
    for name in ("a", "b"):
        unit.store(name, 0)
    unit.remove("a")
    unit.store("c", 0)
    assert capfd.readouterr().err == ""
    for name in ("d", "e"):
        unit.store(name, 0)
    assert capfd.readouterr().err.count("FileDescriptorStoreMax") == 1
    assert "FDSTORE" not in os.environ
    unit.give_back()
    assert os.environ["FDSTORE"] == "2"
    manager.close()
    assert unit._socket is not None
    unit._socket.close()
