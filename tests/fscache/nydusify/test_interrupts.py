"""A signal between any two lines: what a run makes is taken away, and containers go on."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from oci_kit import BASE, Entry, Layer, Nydusify, get, layer_tar, push_image, two_layers
from servers import Pusher
from watched import family

from nydus_fscache.cli.nydusify import main as nydusify
from nydus_fscache.convert import builder, containers, workdir
from nydus_fscache.registry import archive, leftovers


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    directory = tmp_path / "own"
    directory.mkdir()
    monkeypatch.chdir(directory)
    for name in ("HOME", "DOCKER_CONFIG"):
        monkeypatch.setenv(name, str(tmp_path))
    yield directory
    assert not leftovers._noted


def signalling(function: Callable[..., Any], number: int, *, before: bool) -> Callable[..., Any]:
    """``function``, with one signal before or behind it."""
    sent = threading.Event()

    def called(*args: Any, **words: Any) -> Any:
        if not before:
            found = function(*args, **words)
        if not sent.is_set() and threading.current_thread() is threading.main_thread():
            sent.set()
            os.kill(os.getpid(), number)
        return function(*args, **words) if before else found

    return called


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (workdir._Guard, "make"), (workdir._Guard, "take"), (workdir._Guard, "release"),
        (workdir, "_open_lock"), (workdir.os, "mkdir"), (workdir, "_remove"),
        (workdir.shutil, "rmtree"), (archive.tarfile, "open"), (archive.os, "fsync"),
    ],
    ids=lambda v: v if isinstance(v, str) else v.__name__.rpartition(".")[2],
)  # fmt: skip
def test_nothing_is_left(
    registry: str, repo: str, push: Pusher, here: Path, monkeypatch: pytest.MonkeyPatch,
    owner: Any, name: str, before: bool, number: int,
) -> None:  # fmt: skip
    push_image(push, "v1", [Layer(layer_tar(BASE[:2]))])
    monkeypatch.setattr(owner, name, signalling(getattr(owner, name), number, before=before))
    words = ["copy", "--source", f"{registry}/{repo}:v1", "--target", "file://out.tar"]
    assert nydusify.main(words) == 128 + number
    assert [p.name for p in here.iterdir() if p.name != "out.tar"] == []


CTR = """#!/bin/sh
shift 4
case "$1 $2" in
"tasks ls") echo "TASK PID STATUS"; echo "one 42 $(cat {state})" ;;
"tasks pause") {early}; echo PAUSED > {state}; {late} ;;
"tasks resume") {resume}; grep -q PAUSED {state} || exit 1; echo RUNNING > {state} ;;
esac
"""
KILL = "kill -TERM $PPID; sleep 0.3"


@pytest.mark.parametrize("moment", ["early", "late", "resume", "inside", "never"])
def test_a_container_goes_on(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """A ctr whose caller is told to end before, behind and in between of what it does."""
    state, once = tmp_path / "state", tmp_path / "once"
    state.write_text("RUNNING\n")
    said = dict.fromkeys(("early", "late", "resume"), ":")
    if moment in said:
        said[moment] = f"[ -e {once} ] || {{ touch {once}; {KILL}; }}"
    program = tmp_path / "bin" / "ctr"
    program.parent.mkdir()
    program.write_text(CTR.format(state=state, **said))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        asked = containers.Containers(str(tmp_path / "s"), "default")
        one = containers.Container("one", "image", here, 42)
        seen = []

        def run(args: object, stop: threading.Event) -> None:
            with asked.paused(one):
                seen.append(state.read_text())
                if moment == "inside":
                    os.kill(os.getpid(), signal.SIGTERM)

        code = nydusify._guarded(SimpleNamespace(run=run), None)  # type: ignore[arg-type]
    assert code == (0 if moment == "never" else 143)
    assert state.read_text() == "RUNNING\n"
    assert seen == ([] if moment in ("early", "late") else ["PAUSED\n"])


def test_a_target_is_whole_or_absent(
    registry: str, repo: str, push: Pusher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the last act is over, the work directory is being removed: the image is there."""
    push_image(push, "v1", [Layer(layer_tar(BASE[:2]))])
    monkeypatch.setattr(shutil, "rmtree", signalling(shutil.rmtree, signal.SIGTERM, before=True))
    source, target = f"{registry}/{repo}:v1", f"{registry}/{repo}-t:n"
    assert nydusify.main(["copy", "--source", source, "--target", target]) == 143
    assert get(registry, f"{repo}-t", "n").content == get(registry, repo, "v1").content


def test_a_child_is_reaped_whatever_its_lock_says() -> None:
    """As a signal in the middle of ``poll`` leaves it."""
    with builder._Child(["sleep", "1000"], threading.Event()) as child:
        child.process._waitpid_lock.acquire()  # type: ignore[attr-defined]
    assert not Path(f"/proc/{child.process.pid}").exists()


def until_it_hears(process: subprocess.Popen[bytes]) -> None:
    """It has a handler of its own for SIGTERM: before, nothing is made."""
    deadline = time.monotonic() + 60
    while process.poll() is None:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        caught = next(line.split()[1] for line in lines if line.startswith("SigCgt:"))
        if int(caught, 16) >> (signal.SIGTERM - 1) & 1:
            return
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.long
@pytest.mark.parametrize("command", ["convert", "zran", "copy", "optimize", "commit", "reverse"])
def test_signals_at_random_moments(
    registry: str, repo: str, push: Pusher, nydusify: Nydusify, command: str
) -> None:
    """The whole image, or no tag; nothing on the disk, and no process."""
    push_image(push, "v1", [*two_layers(), Layer(layer_tar([Entry("r", os.urandom(6 << 20))]))])
    source, base, target = (f"{registry}/{repo}{name}" for name in (":v1", ":n", "-t:n"))
    nydusify.run("convert", "--source", source, "--target", base)
    (nydusify.directory / "list").write_text("/r\n")
    (nydusify.directory / "upper").mkdir()
    (nydusify.directory / "upper" / "new").write_bytes(os.urandom(1 << 20))
    words = {
        "convert": ("convert", "--source", source), "copy": ("copy", "--source", source),
        "zran": ("convert", "--source", source, "--oci-ref"),
        "optimize": ("optimize", "--source", base, "--prefetch-files", "list"),
        "commit": ("commit", "--source", base, "--upper-dir", "upper"),
        "reverse": ("convert", "--source", base, "--reverse"),
    }[command]  # fmt: skip
    moments = random.Random(command)
    for _ in range(20):
        process = subprocess.Popen(
            nydusify.argv(*words, "--target", target), cwd=nydusify.directory,
            env=nydusify.environment(), stderr=subprocess.PIPE,
        )  # fmt: skip
        number = moments.choice((signal.SIGINT, signal.SIGTERM))
        try:
            until_it_hears(process)
            process.wait(moments.uniform(0, 1.5))
        except subprocess.TimeoutExpired:
            pids = family(process.pid)
            process.send_signal(number)
            _, said = process.communicate(timeout=30)
            done = b"pushed image" in said  # and it was about to end
            assert process.returncode in (0, 128 + number, -number if done else 0), said.decode()
            assert not [pid for pid in pids if Path(f"/proc/{pid}/exe").exists()]
        else:
            _, said = process.communicate()
            assert process.returncode == 0, said.decode()
        assert b"Traceback" not in said
        assert nydusify.left() == ["list", "upper"]
        if get(registry, f"{repo}-t", "n").status_code == 200:
            nydusify.run("check", "--target", target)
            shutil.rmtree(nydusify.directory / "output")
