"""The layer store's processes die, alone or together, and Podman goes on."""

from __future__ import annotations

import base64
import contextlib
import errno
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from manager import Manager
from podman import PATIENCE_S, PYTHON, Podman, new_base, plain_image, podman, push, uses, wait_for

from nydus_fscache.kernel.mountinfo import find_mount

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="NOT ROOT: no containers")


@pytest.fixture
def rig() -> Iterator[Podman]:
    with podman(new_base()) as made:
        yield made


@pytest.fixture
def image(rig: Podman, golden: Path) -> str:
    return push(rig, golden / "images" / "layers-zstd")


def test_the_server_dies_and_podman_goes_on(rig: Podman, image: str) -> None:
    plain = plain_image(rig.host, "plain")
    rig.start_store()
    rig.podman("pull", plain)
    rig.podman("pull", image)
    script = (
        "import os,time\n"
        "while not os.path.exists('/stop'):\n"
        "  open('/etc/passwd').read(); os.listdir('/usr/lib'); time.sleep(0.02)\n"
        "print('read all')\n"
    )
    rig.podman("run", "-d", "--name", "reader", image, *PYTHON, script)
    for _ in range(3):
        os.kill(rig.server(), signal.SIGKILL)
        assert rig.podman("run", "--rm", plain, "/bin/busybox", "echo", "a").stdout == "a\n"
        assert rig.podman("run", "--rm", image, *PYTHON, "print(1)").stdout == "1\n"
    # the container may end, and this with it, before it is done
    rig.podman("exec", "reader", *PYTHON, "open('/stop', 'w')", check=False)
    assert rig.podman("wait", "reader").stdout.strip() == "0"
    assert "read all" in rig.podman("logs", "reader").stdout
    rig.podman("rm", "reader")
    rig.podman("rmi", image)
    assert uses(rig) == 0
    assert rig.erofs() == []


def test_a_request_that_a_dead_server_had_taken_is_answered(
    rig: Podman, image: str, tmp_path: Path
) -> None:
    """The server dies while it waits for a registry that says nothing; podman does not notice."""
    rig.start_store()
    registry = registry_pid(rig)
    pulling = None
    os.kill(registry, signal.SIGSTOP)
    try:
        coded = base64.b64encode(image.encode()).decode()
        code = f"import os; os.stat('{rig.store}/names/{coded}/sha256:{'0' * 64}')"
        pulling = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
        wait_for(lambda: open_requests(rig), lambda: "the request was not taken")
        os.kill(rig.server(), signal.SIGKILL)
        wait_for(lambda: rig.said().count("serving") == 2, rig.said)
    finally:
        os.kill(registry, signal.SIGCONT)
    _, said = pulling.communicate(timeout=PATIENCE_S)
    assert "FileNotFoundError" in said, "an answer, and the right one"
    assert "a request that a predecessor had taken" in rig.said()
    rig.podman("pull", image)


def registry_pid(rig: Podman) -> int:
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = entry.read_bytes()
            if b"docker-registry" in line and str(rig.base).encode() in line:
                return int(entry.parent.name)
    raise AssertionError("no registry")


def open_requests(rig: Podman) -> bool:
    """Has the server taken a lookup in a directory, which it does not answer yet?"""
    from nydus_fscache.runtimes.store.wire import SLOT

    pid = rig.server()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if "memfd:requests" in os.readlink(link):
                memory = link.read_bytes()
                lengths = [memory[off : off + 4] for off in range(0, len(memory), SLOT)]
                return any(any(length) for length in lengths)
    return False


def kill_both(keeper: subprocess.Popen[bytes] | None) -> None:
    assert keeper is not None
    children = Path(f"/proc/{keeper.pid}/task/{keeper.pid}/children").read_text()
    server = int(children.split()[0])
    os.kill(keeper.pid, signal.SIGSTOP)  # so that it starts nothing when the server goes
    os.kill(server, signal.SIGKILL)
    os.kill(keeper.pid, signal.SIGKILL)
    keeper.wait()
    wait_for(lambda: not Path(f"/proc/{server}").exists(), lambda: "it does not end")


def test_keeper_and_server_die_and_the_next_store_heals(rig: Podman, image: str) -> None:
    """Meanwhile Nydus images cannot be had anew, and all else goes on."""
    plain, other = plain_image(rig.host, "plain"), plain_image(rig.host, "other")
    rig.start_store()
    rig.podman("pull", plain)
    rig.podman("pull", image)
    rig.podman("run", "-d", "--name", "reader", image, *PYTHON,
               "import os,time\nwhile not os.path.exists('/stop'): time.sleep(0.02)")  # fmt: skip
    kill_both(rig.process)
    assert rig.podman("run", "--rm", plain, "/bin/busybox", "echo", "a").stdout == "a\n"
    rig.podman("pull", other)
    assert image in rig.podman("images", "--format", "{{.Repository}}:{{.Tag}}").stdout
    assert "reader" in rig.podman("ps", "--format", "{{.Names}}").stdout
    rig.podman("rmi", other)
    refused = rig.podman("run", "--rm", image, *PYTHON, "print(1)", check=False)
    assert refused.returncode != 0
    # the container may end, and this with it, before it is done
    rig.podman("exec", "reader", *PYTHON, "open('/stop', 'w')", check=False)
    assert rig.podman("wait", "reader").stdout.strip() == "0"
    rig.log.unlink()
    rig.start_store()
    assert rig.podman("run", "--rm", image, *PYTHON, "print(1)").stdout == "1\n"
    rig.podman("rm", "reader")
    rig.podman("rmi", image)
    assert uses(rig) == 0


def test_as_a_unit_a_kill_of_everything_is_a_pause(rig: Podman, image: str) -> None:
    """systemd holds the connection: a command waits, and succeeds."""
    words = ("--root", str(rig.root))
    places = {"/var/lib/nydus-store": rig.store}
    manager = Manager(rig.base, {}, places, "nydus-fscache-store.service", words)
    try:
        manager.start()
        rig.podman("pull", image)
        for _ in range(2):
            assert {"names", "names.requests", "store.lock"} == set(manager.names())
            kill_both(manager.main)
            argv = rig.argv("run", "--rm", image, *PYTHON, "print(1)")
            running = subprocess.Popen(
                argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                env=rig.environment, cwd=rig.home,
            )  # fmt: skip
            (connection,) = [fd for name, fd in manager.store if name == "names"]
            asked, _, _ = select.select([connection], [], [], PATIENCE_S)
            assert asked, "podman asked nobody"
            manager.start()
            out, said = running.communicate(timeout=PATIENCE_S)
            assert (out, running.returncode) == ("1\n", 0), said + manager.tail()
        rig.podman("rmi", image)
        assert uses(rig) == 0
        assert manager.main is not None
        os.kill(manager.main.pid, signal.SIGTERM)
        assert manager.wait() == 0
        assert manager.names() == []
    finally:
        manager.close()


def test_a_server_that_cannot_start_is_not_waited_for(rig: Podman, image: str) -> None:
    """For as long as readers of images would wait, and then it is as if nobody served."""
    rig.environment_of_store["NYDUS_FSCACHE_DENY_AFTER_S"] = "1"
    plain = plain_image(rig.host, "plain")
    rig.start_store()
    rig.podman("pull", image)
    state = rig.store / "state" / "uses.json"
    good = state.read_bytes()
    state.write_bytes(b"{")
    os.kill(rig.server(), signal.SIGKILL)
    name = base64.b64encode(plain.encode()).decode()
    code = f"import os; os.stat('{rig.store}/names/{name}')"
    done = subprocess.run(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, check=False,
        timeout=PATIENCE_S,
    )  # fmt: skip
    assert f"[Errno {errno.ECONNABORTED}]" in done.stderr
    rig.podman("pull", plain)
    assert rig.podman("run", "--rm", plain, "/bin/busybox", "echo", "a").stdout == "a\n"
    state.write_bytes(good)
    wait_for(lambda: rig.said().count("serving") == 2, rig.said)
    assert rig.podman("run", "--rm", image, *PYTHON, "print(1)").stdout == "1\n"
    rig.podman("rmi", image)
    assert uses(rig) == 0


def test_the_keeper_dies_alone(rig: Podman, image: str) -> None:
    rig.start_store()
    rig.podman("pull", image)
    assert rig.process is not None
    os.kill(rig.process.pid, signal.SIGKILL)
    rig.process.wait()
    wait_for(lambda: "holds everything again" in rig.said(), rig.said)
    assert rig.podman("run", "--rm", image, *PYTHON, "print(1)").stdout == "1\n"
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = entry.read_bytes()
            if b"keeper.py" in words and str(rig.store).encode() in words:
                os.kill(int(entry.parent.name), signal.SIGTERM)
    wait_for(lambda: find_mount(rig.store) is None, lambda: "the store does not end")


@pytest.mark.long
def test_a_stopped_store_leaves_podman_alone(rig: Podman, image: str) -> None:
    plain = plain_image(rig.host, "plain")
    rig.start_store()
    rig.podman("pull", plain)
    rig.podman("pull", image)
    assert rig.stop_store() == 0
    assert rig.podman("run", "--rm", plain, "/bin/busybox", "echo", "a").stdout == "a\n"
    assert find_mount(rig.store) is None
    rig.log.unlink()
    rig.start_store()
    assert rig.podman("run", "--rm", image, *PYTHON, "print(1)").stdout == "1\n"


