"""``ls``, ``cat`` and ``stat`` on the golden images, as a user runs them."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CLI = [sys.executable, "-m", "nydus_fscache"]
GOLDEN = Path(__file__).resolve().parents[4] / "shared" / "golden" / "images"
IMAGES = sorted(p.name for p in GOLDEN.iterdir()) if GOLDEN.is_dir() else ["layers-zstd"]


def run(*args: str | Path, code: int = 0) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(
        [*CLI, *map(str, args)], capture_output=True, timeout=60, check=False
    )
    assert done.returncode == code, done.stderr
    return done


def text(*args: str | Path) -> str:
    return run(*args).stdout.decode()


def expected(image: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (image / "expected.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", IMAGES)
def test_ls_json_is_the_expected_tree(golden: Path, name: str) -> None:
    image = golden / "images" / name
    wanted = {e["path"]: e for e in expected(image)}
    lines = text("ls", "-R", "--json", image / "image.boot").splitlines()
    found = {e["path"]: e for e in map(json.loads, lines)}
    assert set(found) == set(wanted)
    assert len(lines) == len(wanted)
    for path, entry in wanted.items():
        entry.pop("sha256", None)
        if entry["mtime"] is None:
            entry["mtime"] = found[path]["mtime"]
        assert found[path] == entry


@pytest.mark.parametrize("name", IMAGES)
def test_cat_gives_the_expected_bytes(golden: Path, name: str) -> None:
    image = golden / "images" / name
    files = sorted((e for e in expected(image) if e["type"] == "reg"), key=lambda e: e["size"])
    for entry in (files[-1], files[len(files) // 2]):
        done = run("cat", image / "image.boot", entry["path"], "--blob-dir", image / "blobs")
        assert hashlib.sha256(done.stdout).hexdigest() == entry["sha256"]


def test_cat_follows_links_inside_the_image(golden: Path) -> None:
    image = golden / "images" / "layers-zstd"
    links = [e for e in expected(image) if e["type"] == "lnk"]
    regular = {e["path"]: e for e in expected(image) if e["type"] == "reg"}
    checked = 0
    for link in links:
        target = Path(link["target"])
        path = target if target.is_absolute() else Path(link["path"]).parent / target
        if str(path) in regular:
            done = run("cat", image / "image.boot", link["path"], "--blob-dir", image / "blobs")
            assert len(done.stdout) == regular[str(path)]["size"]
            checked += 1
    assert checked


def test_a_blob_with_its_bootstrap_inside_is_enough(golden: Path, tmp_path: Path) -> None:
    blob = next((golden / "images" / "layers-zstd" / "blobs").glob("38f*"))
    shutil.copy(blob, tmp_path / "layer")
    listed = text("ls", "-R", "--json", tmp_path / "layer").splitlines()
    files = [e for e in map(json.loads, listed) if e["type"] == "reg" and e["size"]]
    assert files
    done = run("cat", tmp_path / "layer", files[0]["path"])
    assert len(done.stdout) == files[0]["size"]


def test_ls_in_text(golden: Path) -> None:
    boot = golden / "images" / "layers-zstd" / "image.boot"
    assert "main.py" in text("ls", boot, "/app").splitlines()
    assert text("ls", boot, "/app/main.py").splitlines() == ["/app/main.py"]
    assert any(
        line.startswith("-rw-r--r--") and line.endswith("main.py")
        for line in text("ls", "-l", boot, "/app").splitlines()
    )


def test_stat_of_the_image(golden: Path) -> None:
    image = golden / "images" / "layers-zstd"
    document = json.loads(text("stat", "--json", image / "image.boot"))
    assert {b["id"] for b in document["blobs"]} == {p.name for p in (image / "blobs").iterdir()}
    assert document["blobs"][0]["compressor"] == "zstd"
    assert document["entries"]["reg"] == sum(e["type"] == "reg" for e in expected(image))
    assert "zstd" in text("stat", image / "image.boot")


def test_stat_of_a_file(golden: Path) -> None:
    boot = golden / "images" / "layers-zstd" / "image.boot"
    document = json.loads(text("stat", "--json", boot, "/app/main.py"))
    assert sum(e["size"] for e in document["extents"]) == document["size"]
    assert "xattr:       user.comment = hello" in text("stat", boot, "/app/main.py")


def test_a_corrupted_chunk_is_no_output_but_an_error(golden: Path, tmp_path: Path) -> None:
    image = golden / "images" / "one-none-64k"
    big = max((e for e in expected(image) if e["type"] == "reg"), key=lambda e: e["size"])
    document = json.loads(text("stat", "--json", image / "image.boot", big["path"]))
    blob = next((image / "blobs").iterdir())
    data = bytearray(blob.read_bytes())
    data[document["extents"][0]["offset"] + 10] ^= 1
    (tmp_path / blob.name).write_bytes(data)
    done = run("cat", image / "image.boot", big["path"], "--blob-dir", tmp_path, code=3)
    assert done.stdout == b""
    assert b"hint: " in done.stderr


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["ls", "MISSING"], 2),
        (["ls", "BOOT", "/no/such"], 1),
        (["cat", "BOOT", "/app"], 2),
        (["cat", "BOOT", "/app", "--blob-dir", "EMPTY"], 1),
        (["cat", "BOOT", "/app/main.py", "--blob-dir", "EMPTY"], 4),
        (["stat", "SHORT"], 3),
        (["ls", "NOISE"], 3),
        (["ls", "V5"], 3),
    ],
)
def test_what_goes_wrong_is_one_line_and_a_hint(
    golden: Path, tmp_path: Path, words: list[str], code: int
) -> None:
    boot = golden / "images" / "layers-zstd" / "image.boot"
    (tmp_path / "empty").mkdir()
    (tmp_path / "short").write_bytes(boot.read_bytes()[:5000])
    (tmp_path / "noise").write_bytes(b"noise" * 4000)
    (tmp_path / "v5").write_bytes(b"SFAR" + bytes(8188))
    places = {
        "BOOT": boot,
        "MISSING": tmp_path / "missing",
        "EMPTY": tmp_path / "empty",
        "SHORT": tmp_path / "short",
        "NOISE": tmp_path / "noise",
        "V5": tmp_path / "v5",
    }
    done = run(*(places.get(word, word) for word in words), code=code)
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 2, lines
    assert lines[0].startswith("nydus-fscache: error: ")
    assert lines[1].startswith("hint: ")
