"""For a person at the terminal: events, top, bugreport, and --json everywhere."""

from __future__ import annotations

import base64
import io
import json
import os
import pty
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from rig import Rig, regular_files

from nydus_fscache.cli.fscache.main import COMMANDS, parser_for

WAIT_S = 20


def mounted(rig: Rig, golden: Path) -> Path:
    image = golden / "images" / "one-lz4"
    point = rig.mount(image / "image.boot", image / "blobs", "m", "--prefetch", "none")
    for file in regular_files(point):
        file.read_bytes()
    return point


# -- events --------------------------------------------------------------------------------------


def events(rig: Rig, *words: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in rig.run("events", *words).stdout.splitlines()]


def test_events_of_a_life(rig: Rig, golden: Path) -> None:
    point = mounted(rig, golden)
    pid = rig.status()["pid"]
    os.kill(pid, signal.SIGKILL)
    rig.wait_until_ready()
    rig.run("umount", point)
    rig.run("upgrade")
    rig.run("stop")
    found = events(rig)  # no daemon runs
    times = [event["time"] for event in found]
    assert times == sorted(times)  # type: ignore[type-var]
    names = [event["event"] for event in found if event["event"] not in ("error", "independent")]
    assert names == [
        "started", "mounted", "taken-over", "started", "unmounted", "making-way", "started",
        "stopped",
    ]  # fmt: skip
    assert [e["starts"] for e in found if e["event"] == "started"] == [1, 2, 3]
    mount = next(e for e in found if e["event"] == "mounted")
    assert mount["mountpoint"] == str(point)
    assert mount["transport"] == "fanotify"
    assert [e["event"] for e in events(rig, "--last", "1")] == ["stopped"]
    kinds = events(rig, "--kind", "unmounted", "--kind", "mounted")
    assert [e["event"] for e in kinds] == ["mounted", "unmounted"]


def test_events_are_followed_and_errors_are_among_them(rig: Rig, golden: Path) -> None:
    point = mounted(rig, golden)
    command = [sys.executable, "-m", "nydus_fscache", "events", "--root", rig.root, "--follow"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, bufsize=1) as follow:
        assert follow.stdout is not None
        try:
            lines = (json.loads(line) for line in follow.stdout)
            assert next(lines)["event"] == "started"
            subprocess.run(["umount", point], check=True)
            line = next(line for line in lines if line["event"] == "unmounted")
            assert line["by"] == "others"
            # a rotation does not end it, nor is anything lost
            (rig.root / "events.jsonl").rename(rig.root / "events.jsonl.1")
            with (rig.root / "events.jsonl").open("w") as file:
                file.write('{"event": "half')
                file.flush()
                file.write('", "time": 1}\n')
            assert next(lines)["event"] == "half"
        finally:
            follow.send_signal(signal.SIGINT)
            assert follow.wait(WAIT_S) == 130


# -- top -----------------------------------------------------------------------------------------


def test_top_once(rig: Rig, golden: Path) -> None:
    point = mounted(rig, golden)
    text = rig.run("top", "--once").stdout
    assert "\x1b" not in text
    assert str(point) in text
    assert "100% of" in text
    document = json.loads(rig.run("top", "--once", "--json").stdout)
    (mount,) = document["mounts"]
    assert mount["present"] == mount["size"]
    assert mount["bytes_per_s"] > 0
    assert document["misses_per_s"] > 0
    assert 0 < document["miss_p50_s"] <= document["miss_p95_s"] < 60
    assert mount["errors"] == document["failed_per_s"] == 0
    rig.run("umount", point)
    rig.run("stop")
    gone = rig.run("top", "--once", check=False)
    assert (gone.returncode, gone.stdout) == (9, "")


def test_top_is_live_on_a_terminal_and_ends_with_q(rig: Rig, golden: Path) -> None:
    mounted(rig, golden)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "nydus_fscache", "top", "--root", rig.root]
    try:
        with subprocess.Popen(
            [*command, "--interval", "0.1"], stdin=theirs, stdout=theirs, stderr=theirs,
            env={**os.environ, "COLUMNS": "200", "LINES": "30"},
        ) as top:  # fmt: skip
            shown, deadline = b"", time.monotonic() + WAIT_S
            while shown.count(b"kernel requests") < 3 and time.monotonic() < deadline:
                shown += os.read(ours, 1 << 16)
            os.write(ours, b"q")
            assert top.wait(WAIT_S) == 0, shown
        assert b"\x1b[H" in shown
        assert str(rig.base / "m").encode() in shown
        assert b"0/s, misses 0/s" in shown.replace(b".0", b"")  # nobody reads between two tables
    finally:
        os.close(ours)
        os.close(theirs)


# -- bugreport -----------------------------------------------------------------------------------


def members(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {
            member.name.partition("/")[2]: archive.extractfile(member).read()  # type: ignore[union-attr]
            for member in archive
        }


def test_bugreport_has_all_and_no_secret(rig: Rig, golden: Path, tmp_path: Path) -> None:
    secrets = [f"planted-{name}-0815" for name in ("token", "docker", "env", "url", "header")]
    token, docker, environment, url, header = secrets
    docker_config = tmp_path / "docker"
    docker_config.mkdir()
    pair = base64.b64encode(f"bob:{docker}".encode()).decode()
    (docker_config / "config.json").write_text(json.dumps(
        {"auths": {"r.example": {"auth": pair}, "q.example": {"identitytoken": token}}}
    ))
    rig.environment["DOCKER_CONFIG"] = str(docker_config)
    rig.environment["IMAGE_PULL_AUTH"] = base64.b64encode(f"a:{environment}".encode()).decode()
    mounted(rig, golden)
    with (rig.root / "daemon.log").open("a") as log:
        log.write(f"GET https://bob:{url}@host/v2/?X-Amz-Signature={url}\n")
        log.write(f"Authorization: Bearer {header}\nit was {docker}, or {token}\n")
        log.write(f"and {base64.b64encode(docker.encode()).decode()} and {pair}\n")
    with (rig.root / "events.jsonl").open("a") as file:
        file.write(json.dumps({"event": "error", "message": f"with {token}:"}) + "\n")
    target = tmp_path / "report.tar.gz"
    assert str(target) in rig.run("bugreport", "--output", target).stdout
    assert target.stat().st_mode & 0o077 == 0
    found = members(target.read_bytes())
    for name in (
        "versions.json", "status.json", "metrics.txt", "state.json", "doctor.json", "daemon.log",
        "events.jsonl", "processes.txt", "mounts.txt", "disk.txt", "root.txt",
    ):  # fmt: skip
        assert found.get(name), f"{name} is missing: {sorted(found)}"
    assert json.loads(found["status.json"])["mounts"]
    assert b"nydus_fscache_requests_total" in found["metrics.txt"]
    assert b"nydus_fscache.daemon.main" in found["processes.txt"]
    everything = b"".join(found.values())
    for secret in secrets:
        encoded = base64.b64encode(secret.encode())
        assert secret.encode() not in everything, secret
        assert encoded.rstrip(b"=") not in everything, secret
    assert pair.encode() not in everything
    assert rig.environment["IMAGE_PULL_AUTH"].encode() not in everything


def test_bugreport_without_a_daemon(rig: Rig) -> None:
    """Credentials of images are known from the state that it left."""
    rig.run("gc")  # makes the root
    pair = base64.b64encode(b"bob:planted-quixotry").decode()
    secret = {"access_key_secret": "plant-12"}
    backends = [{"registry": {"auth": pair, "host": "h"}}, {"oss": secret}]
    state = {"version": 2, "bindings": [{"backend": backend} for backend in backends]}
    (rig.root / "state.json").write_text(json.dumps(state))
    (rig.root / "daemon.log").write_text(f"here is plant-12, planted-quixotry and {pair}\n")
    done = rig.run("bugreport", "--output", rig.base / "r.tar.gz", "--json")
    found = members(Path(json.loads(done.stdout)["file"]).read_bytes())
    assert b"no daemon runs" in found["status.json.missing"]
    assert found["processes.txt"] == b"none\n"
    assert found["daemon.log"] == b"here is <removed>, <removed> and <removed>\n"
    everything = b"".join(found.values())
    assert all(secret not in everything for secret in (b"plant-12", b"quixotry", pair.encode()))
    assert b'"host": "h"' in found["state.json"]


# -- JSON ----------------------------------------------------------------------------------------


def test_every_command_has_json(capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS:
        with pytest.raises(SystemExit):
            parser_for([command]).parse_args([command, "--help"])
        assert "--json" in capsys.readouterr().out, command


def test_cat_as_json(golden: Path) -> None:
    image = golden / "images" / "one-lz4"
    command = [sys.executable, "-m", "nydus_fscache", "cat", image / "image.boot", "--json"]
    lines = (image / "expected.jsonl").read_text().splitlines()
    files = [e for e in map(json.loads, lines) if e["type"] == "reg" and e["size"] > 100][:3]
    words = [*command, *(e["path"] for e in files), "--blob-dir", image / "blobs"]
    out = subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout
    for line, entry in zip(out.splitlines(), files, strict=True):
        document = json.loads(line)
        assert document["path"] == entry["path"]
        assert len(base64.b64decode(document["data"])) == document["size"] == entry["size"]
