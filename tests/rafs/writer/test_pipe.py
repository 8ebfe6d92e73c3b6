"""`--blob` as nydus-snapshotter gives it: a pipe that somebody reads, or stops reading."""

from __future__ import annotations

import gzip
import os
import select
import subprocess
from pathlib import Path

import pytest
from built import NYDUS_IMAGE

from rafs_v6.cli import main
from rafs_v6.writer import blob_file as blobfile


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    root.mkdir()
    (root / "big").write_bytes(os.urandom(3 << 20))
    return root


def _create(tree: Path, blob: Path | str) -> list[str]:
    return [
        "create", "--blob-inline-meta", "--features", "blob-toc", "--blob", str(blob), str(tree)
    ]  # fmt: skip


def test_a_pipe_gets_what_a_file_gets(tree: Path, tmp_path: Path) -> None:
    blob, pipe = tmp_path / "blob", tmp_path / "pipe"
    assert main(_create(tree, blob)) == 0
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE) as reader:
        with subprocess.Popen([*NYDUS_IMAGE, *_create(tree, pipe)]) as builder:
            got = reader.communicate(timeout=60)[0]
        assert builder.returncode == 0
    assert got == blob.read_bytes()
    assert pipe.is_fifo()
    done = subprocess.run(
        [*NYDUS_IMAGE, *_create(tree, "/dev/stdout")],
        capture_output=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout == got
    assert Path("/dev/stdout").is_symlink()


def test_a_reader_that_goes_away_is_an_error(tree: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen([*NYDUS_IMAGE, *_create(tree, pipe)], stderr=subprocess.PIPE) as builder:
        with pipe.open("rb") as reader:
            reader.read(1000)
        error = builder.communicate(timeout=60)[1]
    assert builder.returncode == 1
    assert f"{pipe}: who read from this pipe has gone away" in error.decode()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pipe", "tree"]


def test_a_pipe_without_a_reader_is_not_waited_for_without_end(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(blobfile, "READER_WAIT_S", 0)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert main(_create(tree, pipe)) == 1
    assert "nobody has read from this pipe" in capsys.readouterr().err


def test_a_reader_sees_the_end_when_the_source_is_refused(tmp_path: Path) -> None:
    pipe, source = tmp_path / "pipe", tmp_path / "layer.tar.gz"
    os.mkfifo(pipe)
    source.write_bytes(gzip.compress(bytes(1000))[:20])
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        poll = select.poll()
        poll.register(reader, select.POLLIN)
        argv = ["create", "-t", "targz-ref", "--blob-inline-meta", "--blob", str(pipe)]
        assert poll.poll(0) == []
        assert main([*argv, str(source)]) == 1
        # A writer came and went; without one the reader would wait for the first.
        assert poll.poll(0) == [(reader, select.POLLHUP)]
    finally:
        os.close(reader)
