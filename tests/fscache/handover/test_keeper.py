"""The keeper beside a service that is a few lines: who is killed when, and who comes next."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nydus_fscache.handover import keeper

# a service: takes nothing over, and says what the words tell it to, after so many seconds each
SERVICE = """
import os, socket, sys, time
link = socket.socket(fileno=int(os.environ["NYDUS_KEEPER_FD"]))
while link.recv(512) != b"end":
    pass
print("begins", os.getpid(), flush=True)
for word in sys.argv[1:]:
    pause, _, message = word.partition("=")
    time.sleep(float(pause))
    link.send(message.encode())
print("ends", flush=True)
"""


def run(*words: str, start_s: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable, "-I", "-S", keeper.__file__,
            sys.executable, "-c", SERVICE, *words,
        ],
        env={**os.environ, "NYDUS_FSCACHE_START_S": start_s},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_a_start_may_take_long_as_long_as_it_gets_on() -> None:
    done = run(*["0.6=progress"] * 4, "0=ready", "0=bye", start_s="1.5")
    assert (done.returncode, done.stdout.count("begins")) == (0, 1), done.stderr
    assert "no progress" not in done.stderr


def test_a_keeper_that_slept_believes_the_service_first() -> None:
    """A machine that stood still: all that the service has said is read before it is judged."""
    words = ["0=progress"] * 5 + ["0=ready", "5=bye"]
    process = subprocess.Popen(
        [
            sys.executable, "-I", "-S", keeper.__file__,
            sys.executable, "-c", SERVICE, *words,
        ],
        env={**os.environ, "NYDUS_FSCACHE_START_S": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGSTOP)
    time.sleep(2)
    process.send_signal(signal.SIGCONT)
    out, said = process.communicate(timeout=30)
    assert (process.returncode, out.count("begins")) == (0, 0), said
    assert "no progress" not in said


def test_a_start_that_gets_stuck_is_ended() -> None:
    """And one that is asked to stop before it serves anything is not started again."""
    words = [sys.executable, "-I", "-S", keeper.__file__, sys.executable, "-c", SERVICE, "30=ready"]
    process = subprocess.Popen(
        words, env={**os.environ, "NYDUS_FSCACHE_START_S": "0.5"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        pids = [int(process.stdout.readline().split()[1]) for _ in range(2)]
        assert pids[0] != pids[1]
    finally:
        process.terminate()
        _, said = process.communicate(timeout=30)
    assert "made no progress" in said


@pytest.mark.parametrize("end", ["", "0=bye"])
def test_an_upgrade_is_kept_to_whatever_the_service_dies_of(tmp_path: Path, end: str) -> None:
    told = tmp_path / "told"
    successor = [sys.executable, "-c", f"open({os.fspath(told)!r}, 'w').close()\n{SERVICE}"]
    successor += ["0=ready", "0=bye"]
    script = tmp_path / "service.py"
    program = [sys.executable, "-I", "-S", keeper.__file__]
    upgrade = "upgrade " + "\0".join([*program, "", *successor])
    script.write_text(
        SERVICE.replace("for word in", f"link.send(b'ready'); link.send({upgrade.encode()!r})\n"
                        "if not sys.argv[1:]: os.kill(os.getpid(), 9)\nfor word in")
    )  # fmt: skip
    done = subprocess.run(
        [
            sys.executable, "-I", "-S", keeper.__file__, sys.executable, script,
            *([end] if end else []),
        ],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert told.exists() == (not end), done.stderr
