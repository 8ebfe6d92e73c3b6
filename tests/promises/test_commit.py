"""``nydusify commit``: what is seen in the container is what its new image shows."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from containerd import Stack, stack
from oci_kit import Entry, Layer, Nydusify, get, get_blob, layer_tar, noise, push_image
from servers import Pusher
from trees import shown

BIN = Path(sys.executable).parent
BUSYBOX = Path("/bin/busybox")
APPLETS = ("sh", "cat", "rm", "mkdir", "echo", "ln", "sleep", "ls", "mv")

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="NOT ROOT: no overlays, no containers")

LOWER = (
    *(Entry(n, mode=0o755) for n in ("etc", "dir", "dir/deep", "moved", "proc", "sys", "dev")),
    Entry("etc/kept", b"kept"), Entry("etc/gone", b"gone"), Entry("etc/changed", b"old"),
    Entry("dir/deep/x", b"x"), Entry("dir/y", b"y"), Entry("moved/a", noise(50_000, 1)),
    Entry("big", noise(1_500_000, 2)), Entry("attr", b"z", xattrs={"user.a": b"1"}),
)  # fmt: skip


@pytest.fixture
def nydusify(tmp_path: Path) -> Nydusify:
    directory = tmp_path / "run"
    directory.mkdir()
    return Nydusify(directory)


@contextlib.contextmanager
def overlay(base: Path) -> Iterator[tuple[Path, Path]]:
    """The merged tree over ``LOWER``, and its upper directory."""
    lower, upper, work, merged = (base / name for name in ("lower", "upper", "work", "merged"))
    for directory in (lower, upper, work, merged):
        directory.mkdir(parents=True)
    tar = base / "lower.tar"
    tar.write_bytes(layer_tar(LOWER))
    subprocess.run(
        ["tar", "--xattrs", "--xattrs-include=*", "-C", lower, "-xpf", tar], check=True
    )
    options = f"lowerdir={lower},upperdir={upper},workdir={work},redirect_dir=off,metacopy=off"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, merged], check=True)
    try:
        yield merged, upper
    finally:
        subprocess.run(["umount", "-l", merged], check=True)


def change(root: Path) -> None:
    (root / "etc" / "gone").unlink()
    (root / "etc" / "changed").write_bytes(noise(300_000, 3))
    shutil.rmtree(root / "dir" / "deep")
    shutil.rmtree(root / "dir")
    (root / "dir").mkdir()
    (root / "dir" / "instead").write_text("instead")
    (root / "one").write_bytes(noise(10_000, 4))
    os.link(root / "one", root / "etc" / "two")
    os.setxattr(root / "attr", "user.b", b"\xff\0binary")
    os.setxattr(root / "one", "user.c", b"3")
    (root / "big").chmod(0o4750)
    os.chown(root / "big", 1000, 70000)
    os.mkfifo(root / "pipe")
    os.mknod(root / "device", 0o60600, os.makedev(7, 200))
    (root / ("n" * 180 + "ü\udcff")).symlink_to("/etc/kept")
    os.rename(root / "moved" / "a", root / "moved-a")
    with (root / "sparse").open("wb") as file:
        file.truncate(3_000_000)


def tree_of(root: Path, without: tuple[str, ...] = ()) -> dict[str, dict[str, Any]]:
    found = {}
    for top, names, files in os.walk(root):
        for name in names + files:
            path = Path(top, name)
            relative = "/" + os.path.relpath(path, root)
            if not relative.startswith(without or ("\0",)):
                found[relative] = shown(path)
    return found


def consistent(host: str, repo: str, tag: str) -> dict[str, Any]:
    manifest: dict[str, Any] = get(host, repo, tag).json()
    config = json.loads(get_blob(host, repo, manifest["config"]["digest"]))
    filled = [h for h in config["history"] if not h.get("empty_layer")]
    assert len(config["rootfs"]["diff_ids"]) == len(manifest["layers"]) == len(filled)
    return manifest


@pytest.mark.parametrize(
    "mode", [(), ("--oci-ref",), ("--batch-size", "0x100000")], ids=["plain", "zran", "batch"]
)
def test_a_commit_over_an_image_of_each_kind(
    registry: str, nydusify: Nydusify, tmp_path: Path, mode: tuple[str, ...]
) -> None:
    repo = f"kind{'-'.join(mode)}".replace("0x", "").replace("--", "-")
    with Pusher(registry, repo) as push:
        push_image(push, "v1", [Layer(layer_tar(LOWER))])
    base, target = f"{registry}/{repo}:n", f"{registry}/other/{repo}:n"
    nydusify.run("convert", "--source", f"{registry}/{repo}:v1", "--target", base, *mode)
    with overlay(tmp_path / "o") as (merged, upper):
        change(merged)
        nydusify.run("commit", "--source", base, "--upper-dir", str(upper), "--target", target)
        with nydusify.mounted(target) as root:
            assert tree_of(root) == tree_of(merged)
    nydusify.run("check", "--target", target)


def test_overlay_directories_alone(
    registry: str, nydusify: Nydusify, tmp_path: Path
) -> None:
    with Pusher(registry, "app") as push:
        push_image(push, "v1", [Layer(layer_tar(LOWER))])
    base, first, second = (f"{registry}/{name}" for name in ("app:n", "new/app:n", "app:2"))
    nydusify.run("convert", "--source", f"{registry}/app:v1", "--target", base)
    with overlay(tmp_path / "o") as (merged, upper):
        change(merged)
        words = ("--upper-dir", str(upper), "--target")
        nydusify.run("commit", "--source", base, *words, first)
        expected = tree_of(merged)
        with nydusify.mounted(first) as root:
            assert tree_of(root) == expected
        one = consistent(registry, "new/app", "n")
        notes = one["layers"][-1]["annotations"]
        assert notes["containerd.io/snapshot/nydus-commit-blobs"] == one["layers"][1]["digest"]
        nydusify.run("check", "--target", first)
        nydusify.run("commit", "--source", base, *words, f"{registry}/new/app:again")
        assert get(registry, "new/app", "again").content == get(registry, "new/app", "n").content

        # A commit above the commit, with something left out; and the limit of their number.
        (merged / "secret").mkdir()
        (merged / "secret" / "key").write_text("k")
        (merged / "later").write_text("later")
        nydusify.run("commit", "--source", first, *words, second, "--with-path", "!/secret")
        with nydusify.mounted(second) as root:
            assert tree_of(root) == tree_of(merged, ("/secret",))
        two = consistent(registry, "app", "2")
        blobs = two["layers"][-1]["annotations"]["containerd.io/snapshot/nydus-commit-blobs"]
        assert blobs.split(",") == [layer["digest"] for layer in two["layers"][1:-1]]
        said = nydusify.run(
            "commit", "--source", first, *words, f"{registry}/app:3", "--maximum-times", "1",
            code=1,
        )  # fmt: skip
        assert "reached maximum committed times 1" in said


def test_what_a_layer_cannot_say_is_refused(
    registry: str, nydusify: Nydusify, tmp_path: Path
) -> None:
    with Pusher(registry, "no") as push:
        push_image(push, "v1", [Layer(layer_tar(LOWER))])
    source, target = f"{registry}/no:v1", f"{registry}/no:n"
    upper = tmp_path / "upper"
    (upper / "dir").mkdir(parents=True)
    words = ("--upper-dir", str(upper), "--target", f"{registry}/no:new")
    assert "nydusify convert" in nydusify.run("commit", "--source", source, *words, code=1)
    nydusify.run("convert", "--source", source, "--target", target)
    os.setxattr(upper / "dir", "trusted.overlay.redirect", b"/other")
    assert "redirect_dir=off" in nydusify.run("commit", "--source", target, *words, code=1)
    os.removexattr(upper / "dir", "trusted.overlay.redirect")
    (upper / ".wh.x").touch()
    assert "a layer cannot hold" in nydusify.run("commit", "--source", target, *words, code=1)
    for wrong in ((), ("--container", "x", "--upper-dir", "y")):
        assert "--upper-dir" in nydusify.run("commit", "--target", target, *wrong, code=1)
    said = nydusify.run(
        "commit", "--container", "x", "--target", target, "--containerd-address", "/none", code=1
    )
    assert "not a socket of containerd" in said or "ctr" in said
    assert nydusify.left() == []


def task_state(rig: Stack, name: str) -> str:
    lines = rig.ctr("tasks", "ls").stdout.splitlines()
    return next((line.split()[2] for line in lines if line.split()[0] == name), "")


def rig_ctr(rig: Stack) -> str:
    return f"ctr --address {rig.containerd_socket}"


@pytest.mark.skipif(not BUSYBOX.exists(), reason="NO busybox-static: NO CONTAINERS")
def test_a_running_container(nydusify: Nydusify, tmp_path: Path) -> None:
    base = Path(f"/var/tmp/nc{os.getpid()}-{time.monotonic_ns() % 1_000_000}")
    environment = {"NYDUS_FSCACHE_ROOT": str(base / "nf")}
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "row").write_text("row\n")
    program = [
        Entry("bin", mode=0o755), Entry("bin/busybox", BUSYBOX.read_bytes(), mode=0o755),
        *(Entry(f"bin/{name}", target="busybox", kind=tarfile.SYMTYPE) for name in APPLETS),
    ]  # fmt: skip
    with stack(base, BIN / "nydusd", BIN / "nydus-image", environment=environment) as rig:
        with Pusher(rig.host, "app") as push:
            push_image(push, "v1", [Layer(layer_tar([*LOWER, *program]))])
        source, target = f"{rig.host}/app:n", f"{rig.host}/app:2"
        nydusify.run("convert", "--source", f"{rig.host}/app:v1", "--target", source)
        rig.pull(source)
        rig.ctr(
            "run", "-d", "--snapshotter", "nydus",
            "--mount", f"type=bind,src={volume},dst=/data,options=rbind:rw",
            source, "busy-one", "/bin/sh", "-c", "sleep 1000",
        )  # fmt: skip
        script = (
            "rm /etc/gone; echo new > /etc/changed; rm -r /dir; mkdir /dir; echo i > /dir/instead;"
            " ln /etc/changed /linked; echo v >> /data/row; mkdir /tmp; echo t > /tmp/t"
        )
        rig.ctr("tasks", "exec", "--exec-id", "e", "busy-one", "/bin/sh", "-c", script)
        words = (
            "commit", "--container", "busy", "--containerd-address", str(rig.containerd_socket),
            "--with-path", "/data,!/tmp",
        )  # fmt: skip
        # A target that refuses: the container goes on.
        said = nydusify.run(*words, "--target", "127.0.0.1:1/app:2", code=1)
        assert "refused" in said
        assert task_state(rig, "busy-one") == "RUNNING"
        broken = tmp_path / "broken"
        broken.write_text(f"#!/bin/sh\n{rig_ctr(rig)} tasks ls >&2\nexit 3\n")
        broken.chmod(0o755)
        said = nydusify.run(*words, "--target", target, "--nydus-image", str(broken), code=1)
        assert "PAUSED" in said
        assert task_state(rig, "busy-one") == "RUNNING"
        nydusify.run(*words, "--target", target)
        assert task_state(rig, "busy-one") == "RUNNING"
        consistent(rig.host, "app", "2")
        rig.pull(target)
        look = "cat /etc/changed /linked /dir/* /data/row; ls /etc; ls /; ls /dir"
        seen = rig.run_container(target, "two", "/bin/sh", "-c", look).stdout.split()
        assert seen[:7] == ["new", "new", "i", "row", "v", "changed", "kept"]
        assert "gone" not in seen
        assert "tmp" not in seen
        assert seen[-1] == "instead"
        rig.ctr("tasks", "kill", "-s", "9", "busy-one")
