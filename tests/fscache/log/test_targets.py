"""The log: rotated, in the journal, with a limit of lines of one kind; and events."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from nydus_fscache.log import targets

PROGRAM = """
import logging, sys
from pathlib import Path
from nydus_fscache import log
listener = log.start(Path(sys.argv[1]))
lines = logging.getLogger("test")
def some(n):
    for number in range(n):
        lines.info("line %d of one kind, somewhat longer so that it fills a file", number)
some(int(sys.argv[2]))
lines.info("the end")
log.event("mounted", mountpoint="/m\\udcff", image="x")
lines.error("blob %s is lost", "abc")
listener.stop()
"""


def write_lines(root: Path, count: int, **environment: str) -> str:
    """Standard error of a process that logs."""
    with (root / "daemon.log").open("ab") as log:
        subprocess.run(
            [sys.executable, "-c", PROGRAM, root, str(count)],
            env={**os.environ, **environment}, check=True, stderr=log, timeout=60,
        )  # fmt: skip
    return (root / "daemon.log").read_text()


def test_a_large_file_is_rotated(tmp_path: Path) -> None:
    settings = {"LOG_RATE": "0", "LOG_SIZE": "20000", "LOG_KEEP": "2"}
    text = write_lines(
        tmp_path, 1000, **{f"NYDUS_FSCACHE_{name}": value for name, value in settings.items()}
    )
    assert text.splitlines()[-1].endswith("blob abc is lost")
    old = sorted(p.name for p in tmp_path.iterdir() if p.name.startswith("daemon.log."))
    assert old == ["daemon.log.1", "daemon.log.2"]
    joined = "".join((tmp_path / name).read_text() for name in ("daemon.log.2", "daemon.log.1"))
    numbers = [int(line.split(" line ")[1].split()[0]) for line in joined.splitlines()]
    assert numbers == list(range(numbers[0], numbers[-1] + 1))  # nothing is lost between them
    assert all(p.stat().st_size < 21000 for p in tmp_path.glob("daemon.log*"))
    assert all(p.stat().st_mode & 0o077 == 0 for p in tmp_path.glob("daemon.log.?"))


def test_others_files_are_left_alone(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "daemon.log").write_text("")
    with (tmp_path / "mine.log").open("ab") as log:
        subprocess.run(
            [sys.executable, "-c", PROGRAM, root, "500"], check=True, stderr=log,
            env={**os.environ, "NYDUS_FSCACHE_LOG_SIZE": "1000"}, timeout=60,
        )  # fmt: skip
    assert (tmp_path / "mine.log").stat().st_size > 10_000
    assert list(root.glob("daemon.log.*")) == []


def test_to_a_file(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path, "1"], check=True, capture_output=True,
        env={**os.environ, "NYDUS_FSCACHE_LOG_TO": "file"}, timeout=60,
    )  # fmt: skip
    assert done.stderr == b""
    assert "the end" in (tmp_path / "daemon.log").read_text()


def test_lines_of_one_kind_have_a_limit_and_are_counted(tmp_path: Path) -> None:
    text = write_lines(tmp_path, 3000, NYDUS_FSCACHE_LOG_RATE="2")
    assert 40 <= text.count("of one kind") < 100
    assert "the end" in text
    left_out = write_lines(tmp_path, 1, NYDUS_FSCACHE_LOG_RATE="0").count("of one kind")
    assert left_out < 102


def test_events_and_errors(tmp_path: Path) -> None:
    text = write_lines(tmp_path, 1)
    assert "mounted" not in text
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [line.pop("time") > 0 for line in lines] == [True, True]
    assert lines == [
        {"event": "mounted", "mountpoint": "/m\udcff", "image": "x"},
        {"event": "error", "of": "test", "message": "blob abc is lost"},
    ]


def test_events_are_rotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "_EVENTS_SIZE", 1000)
    handler = targets.EventFile(tmp_path)
    for number in range(40):
        record = logging.makeLogRecord({"name": "events", "msg": f"e{number}"})
        handler.handle(record)
    files = [(tmp_path / name).read_text() for name in ("events.jsonl.1", "events.jsonl")]
    names = [json.loads(line)["event"] for line in "".join(files).splitlines()]
    assert names == [f"e{n}" for n in range(40 - len(names), 40)]
    assert all(len(text) < 1100 for text in files)


def test_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "_JOURNAL", str(tmp_path / "journal"))
    environment = {"NYDUS_FSCACHE_LOG_TO": "journal"}
    plain = targets.text_target(tmp_path, environment)
    assert isinstance(plain, logging.StreamHandler), "without a journal it is standard error"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(str(tmp_path / "journal"))
        handler = targets.text_target(tmp_path, environment)
        made = {"name": "fetch", "levelno": logging.ERROR, "msg": "two\nlines"}
        handler.handle(logging.makeLogRecord(made))
        got = journal.recv(1 << 16)
        handler.handle(logging.makeLogRecord({**made, "name": "events"}))
        journal.setblocking(False)
        with pytest.raises(BlockingIOError):
            journal.recv(1)
        handler._socket.close()  # type: ignore[attr-defined]
    assert b"PRIORITY=3\n" in got
    assert b"SYSLOG_IDENTIFIER=nydus-fscache\n" in got
    message = b"fetch: two\nlines"
    assert got.endswith(b"MESSAGE\n" + len(message).to_bytes(8, "little") + message + b"\n")
