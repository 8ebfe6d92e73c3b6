"""In the guest: what the death of the service, or another image, must not do over cachefiles."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from checks import DISK, IMAGES, GuestRig, drop_caches, wanted
from trees import assert_tree

rig = GuestRig(DISK / "faults")
OVER = ("--transport", "cachefiles")
DENY_AFTER_S = 15  # a service takes some seconds of them to start here


def begin() -> None:
    rig.base.mkdir()
    os.environ["NYDUS_FSCACHE_DENY_AFTER_S"] = str(DENY_AFTER_S)


def umount(at: Path) -> None:
    subprocess.run(["umount", str(at)], check=True, timeout=30)


READ = "import sys\ntry: open(sys.argv[1], 'rb').read()\nexcept OSError as e: sys.exit(e.errno)"


def read_outcome(path: Path) -> int:
    """errno of a read by a process of its own, 0 when it was read; it must end."""
    return subprocess.run(
        [sys.executable, "-S", "-c", READ, str(path)], timeout=60, check=False
    ).returncode


def outlives_umount() -> str:
    """What somebody has open of a mount that is gone: a successor serves it, until it is closed."""
    image = IMAGES / "one-lz4"
    mount = rig.mount(image / "image.boot", image / "blobs", "m", *OVER, "--prefetch", "none")
    inside = os.open(mount, os.O_RDONLY | os.O_DIRECTORY)
    subprocess.run(["umount", "-l", str(mount)], check=True, timeout=30)
    rig.kill_service()
    drop_caches()
    time.sleep(3)  # housekeeping has looked for what can be released
    files = wanted("one-lz4", Path("."))
    for path, digest in files:
        with open(os.open(path.removeprefix("./"), os.O_RDONLY, dir_fd=inside), "rb") as f:
            assert hashlib.file_digest(f, "sha256").hexdigest() == digest, path
    assert rig.run("stop", check=False).returncode == 6, "it is in use"
    os.close(inside)
    deadline = time.monotonic() + 20
    while rig.status()["mounts"]:
        assert time.monotonic() < deadline, "it is not released"
        time.sleep(0.1)
    return f"{len(files)} files"


def build(name: str, seed: int, size: int = 300_000, **more: bytes) -> Path:
    """An image of one file that does not compress, so that all of them have the same sizes, and of
    ``more`` files."""
    from rafs_v6.cli import main

    out = rig.base / "built" / name
    (out / "tree").mkdir(parents=True)
    (out / "blobs").mkdir()
    for file, data in {"file": random.Random(seed).randbytes(size), **more}.items():
        (out / "tree" / file).write_bytes(data)
    words = ["create", "-B", out / "image.boot", "-D", out / "blobs", out / "tree"]
    with contextlib.redirect_stdout(io.StringIO()):
        assert main([str(word) for word in words]) == 0
    return out


def another_image_of_the_same_blob() -> str:
    """What an image that is gone had cached is not shown as another one's blob of that name."""
    first, second = build("first", 1), build("second", 2)
    (name,), (other,) = ([p.name for p in (i / "blobs").iterdir()] for i in (first, second))
    (second / "blobs" / other).rename(second / "blobs" / name)
    boot = second / "image.boot"
    boot.write_bytes(boot.read_bytes().replace(other.encode(), name.encode()))
    at = rig.mountpoint("shared")
    for number, image in enumerate((first, second, second, first)):
        fsid = f"fsid{number}"
        words = (image / "image.boot", "--blob-dir", image / "blobs", "--domain", "shared")
        rig.run("bind", *words, "--fsid", fsid)
        options = f"fsid={fsid},domain_id=shared"
        words = ["mount", "-t", "erofs", "-o", options, "none", str(at)]
        assert subprocess.run(words, check=False).returncode == 0, f"mount {number}\n{rig.log()}"
        shown = (at / "file").read_bytes()
        assert shown == (image / "tree" / "file").read_bytes(), f"wrong bytes in mount {number}"
        assert (rig.fetched() == 0) == (number == 2), "only what was cached of this very blob"
        if not number:  # both at once are refused
            boot = second / "image.boot"
            done = rig.run("bind", boot, *("--blob-dir", second / "blobs", "--domain", "shared"),
                           "--fsid", "both", check=False)
            assert done.returncode == 5, done.stderr
        umount(at)
        deadline = time.monotonic() + 20
        while rig.run("unbind", "--fsid", fsid, "--domain", "shared", check=False).returncode:
            assert time.monotonic() < deadline, "still in use"
            time.sleep(0.05)
    return name


def lost_binding_is_eio() -> str:
    """The successor has no record of a mount: its readers get EIO, and nobody waits for ever."""
    image = IMAGES / "one-batch"
    mount = rig.mount(image / "image.boot", image / "blobs", "lost", *OVER, "--prefetch", "none")
    files = [p for p in sorted(mount.rglob("*")) if p.is_file() and not p.is_symlink()]
    big = max(files, key=lambda p: p.stat().st_size)
    (rig.root / "state.json").unlink()
    rig.kill_service()
    started = time.monotonic()
    outcome = read_outcome(big)
    assert outcome == errno.EIO, outcome
    took = time.monotonic() - started
    waiting = rig.status()["requests"]["waiting"]
    assert waiting == 0, waiting
    umount(mount)
    again = rig.mount(image / "image.boot", image / "blobs", "lost", *OVER)
    assert_tree(again, image / "expected.jsonl")
    rig.run("umount", again)
    return f"EIO after {took:.1f} s"


def until(what: str, condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"{what}\n{rig.log()}"
        time.sleep(0.1)


def prefetch_goes_on() -> str:
    """Interrupted, and nobody reads: the successor loads the rest."""
    image = IMAGES / "layers-zstd"
    mount = rig.mount(image / "image.boot", image / "blobs", "ahead", *OVER, "--prefetch", "all")
    rig.kill_service()
    until("it is not loaded", lambda: all(b["complete"] for b in rig.status()["blobs"]))
    status, fetched = rig.status(), rig.fetched()
    assert fetched > 0, "there was nothing left to load"
    assert len(status["blobs"]) > 1
    rig.run("umount", mount)
    return f"{fetched} bytes by the successor"


def waits_for_its_image() -> str:
    """A successor cannot serve the image yet: readers wait for it, and after a time get EIO."""
    source, image = IMAGES / "one-encrypted", DISK / "away"  # which nothing has cached before
    shutil.copytree(source, image / "here")
    mount = rig.mount(image / "here/image.boot", image / "here/blobs", "w", *OVER,
                      "--prefetch", "none")
    files = sorted(wanted(source.name, mount), key=lambda f: os.stat(f[0]).st_size)
    some = [path for path, _ in files if os.stat(path).st_size]
    outcomes = []
    for number, comes_in_time in enumerate((True, False)):
        (image / "here/blobs").rename(image / "gone")
        for kept in (rig.root / "images").glob("*.meta"):
            shutil.rmtree(kept)
        rig.kill_service()
        assert len(rig.status()["waiting"]) == 1, f"{rig.status()}\n{rig.log()}"
        started = time.monotonic()
        reader = subprocess.Popen([sys.executable, "-S", "-c", READ, some[-number]])
        until("nobody waits", lambda: rig.status()["requests"]["waiting"])
        if comes_in_time:
            assert reader.poll() is None
            (image / "gone").rename(image / "here/blobs")
        outcomes.append((reader.wait(60), time.monotonic() - started))
    assert read_outcome(Path(some[-1])) == errno.EIO, "who comes later waits no more"
    (image / "gone").rename(image / "here/blobs")
    until("it is not served", lambda: not rig.status()["waiting"])
    for path, digest in files:
        assert hashlib.sha256(Path(path).read_bytes()).hexdigest() == digest, path
    rig.run("umount", mount)
    (served, _), (denied, took) = outcomes
    assert (served, denied) == (0, errno.EIO), outcomes
    assert took < 2 * DENY_AFTER_S, outcomes
    return f"EIO after {took:.1f} s"


def no_service() -> str:
    """No start succeeds: readers get EIO after a time, from the keeper, until one does."""
    image = IMAGES / "chunk-dict"
    mount = rig.mount(image / "image.boot", image / "blobs", "n", *OVER, "--prefetch", "none")
    files = wanted(image.name, mount)
    biggest = max((Path(path) for path, _ in files), key=lambda p: p.stat().st_size)
    state = rig.root / "state.json"
    good = state.read_bytes()
    state.write_text("{")
    os.kill(rig.service_pid(), signal.SIGKILL)
    started = time.monotonic()
    outcome = read_outcome(biggest)
    took = time.monotonic() - started
    state.write_bytes(good)
    rig.status()  # answers once a start has succeeded
    assert outcome == errno.EIO, outcome
    assert took > DENY_AFTER_S / 2, f"EIO after {took:.1f} s"
    for path, digest in files:
        assert hashlib.sha256(Path(path).read_bytes()).hexdigest() == digest, path
    rig.run("umount", mount)
    return f"EIO after {took:.1f} s"


def clock_jumps() -> str:
    """No deadline, no wait and no age is of the wall clock."""
    image = IMAGES / "one-lz4"
    mount = rig.mount(image / "image.boot", image / "blobs", "clock", *OVER, "--prefetch", "none")
    year, denied = 365 * 86400, rig.status()["requests"]["denied"]
    for number, (path, digest) in enumerate(wanted("one-lz4", mount)):
        now = time.clock_gettime(time.CLOCK_REALTIME)
        time.clock_settime(time.CLOCK_REALTIME, now + (-year if number % 2 else year))
        assert hashlib.sha256(Path(path).read_bytes()).hexdigest() == digest, path
    document = rig.status()
    assert 0 <= document["uptime_s"] < 3600, document["uptime_s"]
    assert document["requests"]["denied"] == denied
    rig.run("umount", mount)
    return f"{number + 1} jumps"


CHECKS: dict[str, Callable[[], str]] = {
    "what outlives umount is served by a successor": outlives_umount,
    "another image of the same blob": another_image_of_the_same_blob,
    "a mount that nobody knows is EIO": lost_binding_is_eio,
    "a prefetch goes on in the successor": prefetch_goes_on,
    "readers wait for an image that cannot be served yet": waits_for_its_image,
    "no service can be started": no_service,
    "the clock jumps": clock_jumps,
}
