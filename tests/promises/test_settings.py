"""The configuration file of a node, from the command line to the service."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rig import COMMAND_S, Rig

from nydus_fscache.api import client
from nydus_fscache.errors import DaemonError


def write(rig: Rig, text: str) -> Path:
    file = rig.base / "config.toml"
    file.write_text(text)
    rig.environment["NYDUS_FSCACHE_CONFIG"] = str(file)
    return file


def test_it_is_in_force_where_no_option_is_given(rig: Rig, golden: Path) -> None:
    image, point = golden / "images" / "one-lz4", rig.mountpoint()
    write(rig, f'root = "{rig.root}"\n[mount]\nprefetch = "all"\n[cache]\nlimit = "3G"\n'
               '[log]\nlevel = "DEBUG"\n')  # fmt: skip
    environment = {**os.environ, **rig.environment}

    def command(*words: str | Path) -> str:
        return subprocess.run(
            [sys.executable, "-m", "nydus_fscache", *words], env=environment, check=True,
            stdout=subprocess.PIPE, text=True, timeout=COMMAND_S,
        ).stdout  # fmt: skip

    command("mount", image / "image.boot", point, "--blob-dir", image / "blobs")
    deadline = time.monotonic() + COMMAND_S
    while not all(blob["complete"] for blob in rig.status()["blobs"]):  # prefetch = "all"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert json.loads((rig.root / "state.json").read_text())["cache_limit"] == 3 << 30
    assert " DEBUG " in rig.log()
    shown = json.loads(command("config", "--json"))["settings"]
    assert shown["cache.limit"] == {
        "value": str(3 << 30), "from": "file", "variable": "NYDUS_FSCACHE_CACHE_LIMIT"
    }  # fmt: skip


def test_options_win_over_it_after_an_upgrade_too(rig: Rig) -> None:
    write(rig, '[metrics]\nlisten = "127.0.0.1:1"\n[log]\nlevel = "ERROR"\n')
    rig.start("serve", "--metrics", "127.0.0.1:9")
    rig.wait_until_ready()
    write(rig, '[metrics]\nlisten = "127.0.0.1:2"\n[log]\nlevel = "DEBUG"\n')
    rig.run("upgrade")
    variables = Path(f"/proc/{rig.status()['keeper_pid']}/environ").read_bytes().split(b"\0")
    assert b"NYDUS_FSCACHE_METRICS=127.0.0.1:9" in variables
    assert b"NYDUS_FSCACHE_FROM_FILE=NYDUS_FSCACHE_LOG" in variables


def test_a_wrong_file_is_an_error_of_a_command_and_not_of_a_restart(rig: Rig) -> None:
    write(rig, "")
    rig.start("serve")
    rig.wait_until_ready()
    write(rig, "[cache]\nlimti = 4\n")
    refused = rig.run("status", check=False)
    assert refused.returncode == 2
    assert "cache.limti" in refused.stderr
    assert "hint: do you mean cache.limit?" in refused.stderr
    del rig.environment["NYDUS_FSCACHE_CONFIG"]
    rig.run("upgrade")  # the service reads the wrong file, and says so
    events = rig.run("events", "--kind", "error").stdout
    assert "there is no key cache.limti" in events


@pytest.fixture
def systemctl(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program of that name, found first; what it was told is in the file."""
    program, told = rig.base / "bin" / "systemctl", rig.base / "told"
    program.parent.mkdir()
    serve = f"{sys.executable} -m nydus_fscache serve --root {rig.root}"
    program.write_text(
        f'#!/bin/sh\necho "$@" >>{told}\n[ -z "$SERVES" ] || {{ {serve} >{rig.base}/log 2>&1 & }}\n'
        f"while [ -n \"$SERVES\" ] && [ ! -S {rig.root}/api.sock ]; do sleep 0.05; done\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("NYDUS_FSCACHE_ROOT", str(rig.root))
    monkeypatch.setenv("NYDUS_FSCACHE_UNIT", "ours.service")
    monkeypatch.setattr(client, "_SYSTEMD", rig.base)
    return told


def test_a_unit_is_started_instead_of_a_daemon(
    rig: Rig, systemctl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DaemonError, match=r"ours\.service did not start") as raised:
        client.Client(rig.root).start_daemon()
    assert raised.value.hint == "journalctl -u ours.service"
    assert rig.processes() == []
    monkeypatch.setenv("SERVES", "1")
    assert not client.Client(rig.root).start_daemon(), "it counts as ours, and could be ended"
    assert rig.status()["mounts"] == []
    assert systemctl.read_text() == "start ours.service\n" * 2


def test_another_root_is_no_business_of_the_unit(rig: Rig, systemctl: Path) -> None:
    rig.root = rig.base / "other"
    assert client.Client(rig.root).start_daemon()
    assert not systemctl.exists()
