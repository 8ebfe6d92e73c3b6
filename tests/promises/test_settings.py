"""The configuration file of a node, from the command line to the service."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from rig import COMMAND_S, Rig


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
