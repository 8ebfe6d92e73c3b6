"""``nydus-overlayfs``: options of runtimes are dropped, flags are flags, long options fit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nydus_fscache.cli.overlayfs import main, shortened, split_options
from nydus_fscache.kernel import syscalls

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOATIME = 1, 2, 4, 1024
PROGRAM = [sys.executable, "-m", "nydus_fscache.cli.overlayfs"]

root_only = pytest.mark.skipif(
    os.geteuid() != 0 or not syscalls.is_admin(), reason="NOT ROOT: mounts cannot be tested"
)


@pytest.mark.parametrize(
    ("text", "flags", "rest"),
    [
        ("lowerdir=/a:/b", 0, ["lowerdir=/a:/b"]),
        ("ro,nosuid,lowerdir=/a,nodev", MS_RDONLY | MS_NOSUID | MS_NODEV, ["lowerdir=/a"]),
        ("ro,nosuid,suid,rw,lowerdir=/a", 0, ["lowerdir=/a"]),
        ("dev,suid,lowerdir=/a", 0, ["lowerdir=/a"]),  # mount.fuse adds them
        (
            "extraoption=eyJhIjoxfQ==,lowerdir=/a,io.katacontainers.volume=eyJ9==,index=off",
            0,
            ["lowerdir=/a", "index=off"],
        ),
        ("lowerdir=/a\\,b,noatime,,volatile", MS_NOATIME, ["lowerdir=/a\\,b", "volatile"]),
        ("extraoption=", 0, []),
    ],
)
def test_split_options(text: str, flags: int, rest: list[str]) -> None:
    assert split_options(text) == (flags, rest)


def test_paths_are_shortened_only_when_they_must() -> None:
    base = "/var/lib/snapshots"
    options = [f"lowerdir={base}/1/fs:{base}/2/fs", f"upperdir={base}/3/fs", f"workdir={base}/3/w"]
    assert shortened(options, 4000) == ("", options)
    assert shortened(["index=off", *options], 10) == (
        base, ["index=off", "lowerdir=1/fs:2/fs", "upperdir=3/fs", "workdir=3/w"],
    )  # fmt: skip
    for fixed in (["lowerdir=a:b"], ["lowerdir=/a:/b"], ["index=off"], [f"lowerdir={base}/1::/d"]):
        assert shortened(fixed, 1) == ("", fixed)
    escaped = [f"lowerdir={base}/a\\:b/c:{base}/d"]
    assert shortened(escaped, 1) == (base, ["lowerdir=a\\:b/c:d"])


@pytest.mark.parametrize(
    "words",
    [[], ["overlay"], ["overlay", "/", "lowerdir=/a"], ["fuse", "/", "-o", "lowerdir=/a"],
     ["overlay", "/nonexistent", "-o", "lowerdir=/a"], ["overlay", "/tmp", "-o", "ro"]],
)  # fmt: skip
def test_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert "hint:" in capsys.readouterr().err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "overlay TARGET -o OPTIONS" in capsys.readouterr().out


@root_only
@pytest.mark.parametrize("layers", [2, 120])
def test_an_overlay_is_mounted(tmp_path: Path, layers: int) -> None:
    """120 layers below a long path are more than a page of options."""
    tmp_path.chmod(0o755)
    base = tmp_path / ("snapshots-of-a-path-that-is-long" * 2)
    target = tmp_path / "target"
    target.mkdir()
    for number in range(layers):
        (base / str(number)).mkdir(parents=True)
        (base / str(number) / f"file-{number}").write_text(str(number))
    (base / "up").mkdir()
    (base / "work").mkdir()
    lower = ":".join(str(base / str(number)) for number in range(layers))
    options = f"rw,extraoption=eyJ9,lowerdir={lower},upperdir={base}/up,workdir={base}/work"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-ec",
         '"$@"; ls "$0" | wc -l; echo new > "$0/new"; grep -c " $0 " /proc/mounts; umount "$0"',
         str(target), *PROGRAM, "overlay", str(target), "-o", options],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(layers), "1"]
    assert (base / "up" / "new").read_text() == "new\n"


@root_only
def test_the_kernels_refusal_is_told(tmp_path: Path) -> None:
    options = f"lowerdir={tmp_path}/nothing"
    done = subprocess.run(
        [*PROGRAM, "overlay", str(tmp_path), "-o", options],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 5
    assert "No such file or directory" in done.stderr
