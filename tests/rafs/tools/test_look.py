"""``diff``, ``stat`` and ``inspect``: what they say of images, against what is known of them."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from rafs_v6.cli import main


def _json(capsys: pytest.CaptureFixture[str], *words: str | Path) -> Any:
    capsys.readouterr()
    assert main([str(w) for w in words]) == 0
    return json.loads(capsys.readouterr().out)


def _create(tree: Path, out: Path, name: str, *options: str) -> Path:
    boot = out / f"{name}.boot"
    assert main(["create", "-B", str(boot), "-D", str(out), *options, str(tree)]) == 0
    return boot


@pytest.mark.parametrize("options", [[], ["--compressor", "none"], ["--features", "blob-toc"]])
def test_diff_names_every_change_and_its_cost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    tree = tmp_path / "tree"
    (tree / "d").mkdir(parents=True)
    for name in ("same", "data", "mode", "xattr", "gone", "moved"):
        (tree / "d" / name).write_bytes(name.encode() * 9000)
    (tree / "link").symlink_to("one")
    before = _create(tree, tmp_path, "a", *options)
    (tree / "d" / "data").write_bytes(b"atad" * 9000)
    (tree / "d" / "mode").chmod(0o4755)
    os.setxattr(tree / "d" / "xattr", "user.k", b"v")
    (tree / "d" / "gone").unlink()
    (tree / "d" / "moved").rename(tree / "d" / "there")
    fresh = os.urandom(70_000)
    (tree / "new").write_bytes(fresh)
    (tree / "link").unlink()
    (tree / "link").symlink_to("two")
    after = _create(tree, tmp_path, "b", *options)

    found = _json(capsys, "diff", before, after, "-J", "-")
    assert found["added"] == ["/new", "/d/there"] or set(found["added"]) == {"/new", "/d/there"}
    assert set(found["removed"]) == {"/d/gone", "/d/moved"}
    changed = {c["path"]: set(c["attributes"]) - {"mtime"} for c in found["changed"]}
    assert {p: a for p, a in changed.items() if a} == {
        "/d/data": {"data"}, "/d/mode": {"mode"}, "/d/xattr": {"xattr user.k"},
        "/link": {"target"},
    }  # fmt: skip
    # "/d/there" has the chunk of "/d/moved": only two chunks are new.
    stored = main(["stat", "-B", str(before), "-T", str(after), "-J", str(tmp_path / "s")])
    target = json.loads((tmp_path / "s").read_text())["target_image"]
    assert stored == 0
    assert found["fetch"]["chunks"] == 2 == target["own_chunks"]
    assert found["fetch"]["bytes"] == target["own_comp_size"] > len(fresh) - 1
    assert found["fetch"]["chunks_of_all"] == 6 == target["own_chunks"] + target["ref_chunks"]
    same = _json(capsys, "diff", after, after, "-J", "-")
    assert not any(same[k] for k in ("added", "removed", "changed", "unsure"))
    assert same["fetch"]["bytes"] == 0


def test_diff_of_golden_images(golden: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = golden / "images"
    merged, layer2 = images / "layers-zstd" / "image.boot", images / "one-batch"
    found = _json(capsys, "diff", merged, layer2 / "image.boot", "-D", layer2 / "blobs", "-J", "-")
    assert found["fetch"]["bytes"] == 0  # layer 2 is part of what the node has
    assert found["fetch"]["bytes_of_all"] == 3896599
    back = _json(capsys, "diff", layer2 / "image.boot", merged, "-J", "-")
    assert set(back["added"]) == set(found["removed"])
    assert 0 < back["fetch"]["chunks"] < back["fetch"]["chunks_of_all"]
    zran = images / "layers-zran"
    unknown = _json(capsys, "diff", merged, zran / "image.boot", "-J", "-")["fetch"]
    assert unknown["bytes"] is None
    known = _json(
        capsys, "diff", merged, zran / "image.boot", "-D", zran / "blobs", "-J", "-"
    )["fetch"]  # fmt: skip
    stored = sum(p.stat().st_size for p in (zran / "blobs").iterdir())
    assert 0.8 * stored < known["bytes_of_all"] < 1.2 * stored


def test_stat_counts_as_the_original(golden: Path, tmp_path: Path) -> None:
    """Figures of its own output for these images."""
    base, target = (golden / "images" / n / "image.boot" for n in ("one-lz4", "chunk-dict"))
    out = tmp_path / "out.json"
    assert main(["stat", "-B", str(base), "-T", str(target), "-J", str(out)]) == 0
    document = json.loads(out.read_text())
    known = {
        "dirs": 9, "files": 21, "symlinks": 2, "chunks": 23, "file_size": 11497482,
        "comp_size": 5700667, "uncomp_size": 11534336, "padding_size": 36854, "own_chunks": 18,
        "own_comp_size": 4639724, "own_uncomp_size": 7303177,
        "chunk_sizes": [2816, 1413, 712, 362, 187, 100, 56, 34, 23],
    }  # fmt: skip
    assert document["base_image"].items() >= known.items()
    assert document["target_image"]["comp_size"] == 5351695


def test_stat_equals_the_original(original: Path, golden: Path, tmp_path: Path) -> None:
    base, target = (golden / "images" / n / "image.boot" for n in ("one-none-64k", "one-lz4"))
    ours, theirs = tmp_path / "ours.json", tmp_path / "theirs.json"
    words = ["stat", "-B", str(base), "-T", str(target), "-J"]
    assert main([*words, str(ours)]) == 0
    subprocess.run([original, *words, theirs], check=True, capture_output=True)
    assert json.loads(ours.read_text()) == json.loads(theirs.read_text())


def test_stat_of_a_directory(golden: Path, tmp_path: Path) -> None:
    for name in ("layers-zstd", "one-prefetch"):
        shutil.copy(golden / "images" / name / "image.boot", tmp_path / f"{name}.boot")
    (tmp_path / "other").write_bytes(b"no image")
    out = tmp_path / "out.json"
    assert main(["stat", "-D", str(tmp_path), "-J", str(out)]) == 0
    base = json.loads(out.read_text())["base_image"]
    assert base["dedup_chunks"] == 984  # layer 2, which both have
    assert base["own_chunks"] == 1033  # 1035 less two that two layers share


def test_inspect_answers_in_json(golden: Path, capsys: pytest.CaptureFixture[str]) -> None:
    boot = golden / "images" / "one-prefetch" / "image.boot"

    def ask(question: str) -> Any:
        return _json(capsys, "inspect", boot, "-R", question)

    assert ask("stats")["inodes_count"] == 1003
    (blob,) = ask("blobs")
    assert (blob["compressed_size"], blob["decompressed_size"]) == (4217342, 15474688)
    assert ask("prefetch") == [
        {"inode": 512, "path": ["/usr/lib/python3.11/email/"]},
        {"inode": 152, "path": ["/usr/bin/python3.11"]},
        {"inode": 640, "path": ["/usr/lib/python3.11/encodings/"]},
    ]
    assert [e["name"] for e in ask("ls usr")] == ["bin", "lib", "share"]
    python = ask("stat /usr/bin/python3.11")
    assert (python["inode"], len(python["chunks"])) == (152, 7)
    assert ask("icheck 152") == [python]
    (chunk,) = ask("chunk 0")
    assert chunk["digest"].startswith("5a6a3f0e")
    assert "/usr/lib/python3.11/email/__init__.py" in chunk["files"]
    for question in ("nothing", "chunk x", "stat", "stat nope", "ls usr/bin/python3.11", "cd 7"):
        assert main(["inspect", str(boot), "-R", question]) == 1
        assert capsys.readouterr().err.startswith("nydus-image inspect: ")


def test_inspect_prompt(
    golden: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    boot = golden / "images" / "one-prefetch" / "image.boot"
    questions = "cd usr\nls\nnonsense\ncd /nowhere\nls bin\n\nhelp\nq\nls /etc\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(questions))
    assert main(["inspect", str(boot)]) == 0
    shown = capsys.readouterr()
    assert "python3.11" in shown.out
    assert "icheck INODE" in shown.out
    assert "no command 'nonsense'" in shown.err
    assert "/nowhere is not in the image" in shown.err
    assert "passwd" not in shown.out  # behind q
