"""The Debian package: installed, run, upgraded under readers, removed, purged in a clean tree."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import debian
import pytest
from load import Load
from rangeserver import RangeServer

APP = Path("mnt/app")
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def deb() -> Path:
    return debian.package()


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[debian.Tree]:
    with debian.Tree(tmp_path / "tree") as tree:
        yield tree


def status(tree: debian.Tree) -> dict[str, object]:
    document: dict[str, object] = json.loads(tree.run("nydus-fscache", "status", "--json").stdout)
    return document


def command_of(pid: object) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()


def copies(tree: debian.Tree) -> list[str]:
    return sorted(p.name for p in (tree.path / "usr/lib/nydus-fscache/live").iterdir())


def test_a_life(deb: Path, tree: debian.Tree, golden: Path, tmp_path: Path) -> None:
    before = tree.files()
    tree.install(deb)
    tree.run("/usr/lib/nydus-fscache/current/bin/python3", "-c", "import PIL.Image")  # trace --plot
    for program in ("nydus-fscache", "nydus-image", "nydusify", "nydusd", "nydus-ctr-remote"):
        assert tree.run(program, "--version").stdout
    assert tree.processes() == []  # without systemd nothing is started unasked
    shown = json.loads(tree.run("nydus-fscache", "config", "--json").stdout)
    assert shown["exists"]
    assert shown["settings"]["daemon.unit"]["value"] == "nydus-fscache.service"

    image = golden / "images" / "layers-zstd"
    shutil.copy(image / "image.boot", tree.path / "srv" / "image.boot")
    (tree.path / APP).mkdir()
    with RangeServer(image / "blobs", latency_ms=5, mbps=40, keep_seen=False) as server:
        table = {"addr": server.url, "path": "/blobs"}
        backend = {"type": "http-proxy", "http-proxy": table}
        (tree.path / "srv" / "backend.json").write_text(json.dumps(backend))
        tree.run("mount", "-t", "erofs.nydus", "/srv/image.boot", f"/{APP}",
                 "-o", "backend=/srv/backend.json,prefetch=none")  # fmt: skip
        old = status(tree)
        assert command_of(old["pid"]).startswith("/usr/lib/nydus-fscache/live/0.1.0-1-")

        newer = debian.renewed(deb, "0.1.0-2", tmp_path)
        with Load(tree.path / APP, image / "expected.jsonl") as load:
            installed = tree.install(newer)
        assert load.wrong == []
        assert load.reads > 0
        assert installed.stderr == ""
        new = status(tree)
        assert new["pid"] != old["pid"]
        for pid in (new["pid"], new["keeper_pid"]):
            assert command_of(pid).startswith("/usr/lib/nydus-fscache/live/0.1.0-2-")
        (copy,) = copies(tree)
        assert copy.startswith("0.1.0-2-")

        # removed while a reader has a file open: refused, and the reader goes on
        reader = os.open(tree.path / APP, os.O_RDONLY)
        refused = tree.run("dpkg", "-r", "nydus-fscache", check=False)
        assert refused.returncode != 0
        assert "images are in use" in refused.stderr
        assert os.listdir(reader)
        os.close(reader)
        assert status(tree)["mounts"]
        tree.run("dpkg", "-r", "nydus-fscache")
    assert tree.processes() == []
    assert not os.path.ismount(tree.path / APP)
    assert not (tree.path / "usr/lib/nydus-fscache").exists()
    cached = tree.path / "var/lib/nydus-fscache/cache"
    assert list(cached.glob("*.blob.data"))
    assert (tree.path / "etc/nydus-fscache/config.toml").exists()

    tree.run("dpkg", "--purge", "nydus-fscache")
    left = tree.files() - before - {"srv/image.boot", "srv/backend.json", str(APP)}
    assert {name for name in left if "__pycache__" not in name} == set()


def test_an_image_outlives_an_installation_that_cannot_take_over(
    deb: Path, tree: debian.Tree, golden: Path, tmp_path: Path
) -> None:
    """The copy that serves stays for as long as it does."""
    tree.install(deb)
    image = golden / "images" / "one-lz4"
    shutil.copytree(image, tree.path / "srv" / "image")
    (tree.path / APP).mkdir()
    tree.run("nydus-fscache", "mount", "/srv/image/image.boot", f"/{APP}", "--blob-dir",
             "/srv/image/blobs", "--prefetch", "none")  # fmt: skip
    broken = debian.renewed(deb, "0.1.0-2", tmp_path)
    subprocess.run(["dpkg-deb", "-R", broken, tmp_path / "x"], check=True)
    for file in (tmp_path / "x").rglob("nydus_fscache/daemon/service.py"):
        file.write_text("raise SystemExit(7)\n")
    for file in (tmp_path / "x").rglob("nydus_fscache/daemon/__pycache__/service.*"):
        file.unlink()
    subprocess.run(["dpkg-deb", "-Znone", "-b", tmp_path / "x", broken], check=True)
    installed = tree.install(broken)
    assert "the version that ran before goes on" in installed.stderr
    assert [name[:7] for name in copies(tree)] == ["0.1.0-1", "0.1.0-2"]
    assert command_of(status(tree)["pid"]).startswith("/usr/lib/nydus-fscache/live/0.1.0-1-")
    with Load(tree.path / APP, image / "expected.jsonl") as load:
        pass
    assert load.wrong == []
    tree.install(debian.renewed(deb, "0.1.0-3", tmp_path))
    (copy,) = copies(tree)
    assert copy.startswith("0.1.0-3-")


def test_systemd_understands_the_units(deb: Path, tree: debian.Tree, tmp_path: Path) -> None:
    tree.install(deb)
    store, driver = "nydus-fscache-store.service", "nydus-fscache-graphdriver.service"
    places = [f"/lib/systemd/system/{unit}" for unit in ("nydus-fscache.service", store, driver)]
    done = tree.run("systemd-analyze", "verify", "--man=no", *places, check=False)
    said = [line for line in (done.stdout + done.stderr).splitlines() if "nydus" in line]
    assert all("FileDescriptorStorePreserve" in line for line in said), said  # from 254 on
    text = "".join((tree.path / place[1:]).read_text() for place in places)
    for line in ("Start=/usr/bin/nydus-fscache serve ", "Reload=/usr/bin/nydus-fscache upgrade ",
                 "Start=/usr/bin/nydus-fscache store ", "Start=/usr/bin/nydus-fscache graphd"):
        assert f"\nExec{line}" in text
    wanted = tree.path / "etc/systemd/system/multi-user.target.wants"
    assert (wanted / "nydus-fscache.service").is_symlink()
    # of engines that may not be there: enabled by hand, and then by upgrades, too
    assert not (wanted / store).is_symlink()
    tree.run("systemctl", "enable", store)
    tree.install(debian.renewed(deb, "0.1.0-2", tmp_path))
    assert (wanted / store).is_symlink()
    assert not (wanted / driver).is_symlink()
    tree.run("systemctl", "disable", store)
    tree.install(debian.renewed(deb, "0.1.0-3", tmp_path))
    assert not (wanted / store).is_symlink()


def test_what_is_in_it(deb: Path, tmp_path: Path) -> None:
    subprocess.run(["dpkg-deb", "-x", deb, tmp_path], check=True)
    here = str(Path(__file__).resolve().parents[2])
    for file in tmp_path.rglob("*"):
        mode = file.lstat().st_mode
        assert not mode & stat.S_IWOTH or file.is_symlink(), file
        if file.is_file() and not file.is_symlink() and file.suffix not in (".gz", ".so"):
            assert here.encode() not in file.read_bytes(), f"{file} names the place of its sources"
    for name in ("man8/nydus-fscache.8", "man8/mount.erofs.nydus.8", "man5/nydus-fscache.toml.5"):
        assert (tmp_path / "usr/share/man" / f"{name}.gz").exists()
    assert (tmp_path / "usr/share/bash-completion/completions/nydus-fscache").exists()
    text = (tmp_path / "etc/nydus-fscache/config.toml").read_text()
    assert 'unit = "nydus-fscache.service"' in text


@pytest.mark.skipif(not shutil.which("lintian"), reason="NO lintian: scripts/setup --test")
def test_lintian_has_nothing_to_say(deb: Path) -> None:
    done = subprocess.run(
        ["lintian", "--allow-root", "--fail-on", "error,warning", deb],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
