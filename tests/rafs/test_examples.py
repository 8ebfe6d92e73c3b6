"""The programs of docs/examples, run as a reader of them would."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from built import build_image

EXAMPLES = Path(__file__).resolve().parents[2] / "docs/examples"
NOISE = bytes(range(256)) * 1024


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("image")
    (base / "blobs").mkdir()
    tree = base / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc/release").symlink_to("/usr/lib/release")
    contents = {"usr/lib/release": b"PRETTY\n", "usr/lib/big": NOISE, "usr/x": b"12345"}
    build_image(
        tree, contents, "-t", "dir-rafs", "--compressor", "none", "-B", base / "boot", "-D",
        base / "blobs",
    )  # fmt: skip
    return base


def run(name: str, *args: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, EXAMPLES / name, *args], input=stdin, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip


def test_disk_usage(image: Path) -> None:
    done = run("disk_usage.py", image / "boot")
    assert done.stderr == ""
    sizes = {path: int(size) for size, path in (line.split() for line in done.stdout.splitlines())}
    lib = len(NOISE) + 7
    assert sizes == {"/": lib + 5, "/usr": lib + 5, "/usr/lib": lib, "/etc": 0}


def test_read_file(image: Path) -> None:
    done = run("read_file.py", image / "boot", image / "blobs", "/etc/release")
    assert (done.returncode, done.stdout, done.stderr) == (0, "PRETTY\n", "")
    done = run("read_file.py", image / "boot", image / "blobs", "/etc/none")
    assert done.returncode == 1
    assert done.stderr.startswith("read_file.py: ")
    assert "/etc/none" in done.stderr
    assert "Traceback" not in done.stderr


def test_blob_ranges(image: Path) -> None:
    paths = "/etc/release\n/usr/x\n/usr/../usr/x\n"
    done = run("blob_ranges.py", image / "boot", image / "blobs", stdin=paths)
    ranges = [line.split() for line in done.stdout.splitlines()]
    blob = next((image / "blobs").iterdir())
    data = blob.read_bytes()
    assert {name for name, _, _ in ranges} == {blob.name}
    assert {data[int(o) : int(o) + int(n)] for _, o, n in ranges} == {b"PRETTY\n", b"12345"}
    assert done.stderr == f"12 of {len(NOISE) + 12} bytes\n"
