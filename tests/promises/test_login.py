"""New credentials for what is mounted: after ``login``, and with a further mount."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

from rig import Rig, regular_files
from servers import (
    AUTH,
    OTHER_AUTH,
    Pusher,
    TokenServer,
    change_password,
    docker_registry,
    htpasswd_auth,
)
from trees import assert_tree

USAGE = 2


def first_byte(path: Path) -> int:
    """The errno of reading it; one chunk is fetched for it."""
    try:
        with path.open("rb", buffering=0) as f:
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            f.read(1)
    except OSError as e:
        return e.errno or -1
    return 0


def test_new_credentials_for_what_is_mounted(rig: Rig, golden: Path, tmp_path: Path) -> None:
    image = golden / "images" / "layers-zstd"
    basic = {"Authorization": f"Basic {AUTH}"}
    directory = tmp_path / "registry"
    directory.mkdir()
    with docker_registry(directory, htpasswd_auth(directory)) as host:
        with Pusher(host, "app", basic) as push:
            blobs = [file.read_bytes() for file in (image / "blobs").iterdir()]
            push.nydus_image("v1", (image / "image.boot").read_bytes(), blobs)
        rig.environment["IMAGE_PULL_AUTH"] = AUTH
        words = ("mount", f"{host}/app:v1")
        mount = rig.mountpoint()
        rig.run(*words, mount, "--plain-http", "--prefetch", "none")
        *_, second, first = sorted(regular_files(mount), key=lambda p: p.stat().st_size)

        change_password(directory, other=True)
        rig.environment["IMAGE_PULL_AUTH"] = OTHER_AUTH
        assert first_byte(first) == errno.EIO
        assert rig.run("login", "elsewhere:5000", check=False).returncode == USAGE
        rig.run("login", host)
        assert first_byte(first) == 0

        # the state has them too: a successor fetches what is missing
        os.kill(rig.status()["pid"], signal.SIGKILL)
        before = rig.fetched()
        assert first_byte(second) == 0
        assert rig.fetched() > before
        log = (rig.root / "daemon.log").read_text()
        assert OTHER_AUTH not in log

        change_password(directory, other=False)
        rig.environment["IMAGE_PULL_AUTH"] = AUTH
        again = rig.mountpoint("again")
        rig.run(*words, again, "--plain-http", "--prefetch", "none")
        before = rig.fetched()
        assert_tree(mount, image / "expected.jsonl")
        assert rig.fetched() > before
        rig.run("stop")
    assert rig.leftovers() == []


def test_tokens_are_fetched_by_the_confined_service(
    rig: Rig, golden: Path, tmp_path: Path
) -> None:
    """Its library is imported, and speaks, under the filter of system calls."""
    image = golden / "images" / "layers-zstd"
    directory = tmp_path / "registry"
    directory.mkdir()
    tokens = TokenServer(directory)
    with tokens.run() as realm, docker_registry(directory, tokens.config(realm)) as host:
        bearer = {"Authorization": f"Bearer {tokens.jwt('app', ['pull', 'push'])}"}
        with Pusher(host, "app", bearer) as push:
            blobs = [file.read_bytes() for file in (image / "blobs").iterdir()]
            push.nydus_image("v1", (image / "image.boot").read_bytes(), blobs)
        rig.environment["IMAGE_PULL_AUTH"] = AUTH
        mount = rig.mountpoint()
        rig.run("mount", f"{host}/app:v1", mount, "--prefetch", "none")
        asked = len(tokens.asked)
        assert asked >= 2  # the pull's, and the service's own
        assert_tree(mount, image / "expected.jsonl")
        assert len(tokens.asked) == asked  # one token served all reads
        rig.run("umount", mount)
