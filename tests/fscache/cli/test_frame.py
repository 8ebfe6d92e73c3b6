"""The frame of the command line: help, errors, exit codes, start-up time; and ``doctor``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from unprivileged import CLI_AS_NOBODY

import nydus_fscache
from nydus_fscache.cli.fscache.main import COMMANDS, parser_for
from nydus_fscache.cli.output import printable, size, table

CLI = [sys.executable, "-m", "nydus_fscache"]
IN_USER_NAMESPACE = ["unshare", "--user", "--map-root-user", *CLI]

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="NOT ROOT")


def run(*args: str | Path, cli: Sequence[str] = CLI) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*cli, *map(str, args)], capture_output=True, text=True, timeout=30, check=False
    )


def test_every_command_has_help_with_an_example() -> None:
    parser = parser_for(COMMANDS)
    assert all(name in parser.format_help() for name in COMMANDS)
    for name in COMMANDS:
        done = run(name, "--help")
        assert done.returncode == 0
        assert f"nydus-fscache {name}" in done.stdout.partition("example")[2]


def test_versions_are_said() -> None:
    """nydus-image says it in the lines of the original, which callers parse."""
    said = [
        subprocess.run(
            [Path(sys.executable).with_name(program), "--version"],
            capture_output=True, text=True, timeout=30, check=True,
        ).stdout
        for program in ("nydus-fscache", "nydus-image")
    ]  # fmt: skip
    assert said[0] == f"nydus-fscache {nydus_fscache.__version__}\n"
    assert nydus_fscache.__version__ in said[1].splitlines()[0]


@pytest.mark.parametrize("words", [(), ("frobnicate",), ("ls",), ("status", "--no-such-option")])
def test_wrong_words_are_one_line_and_a_hint(words: tuple[str, ...]) -> None:
    done = run(*words)
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("nydus-fscache: error: ")
    assert lines[1].startswith("hint: ")


def test_errors_as_json(tmp_path: Path) -> None:
    done = run("stat", "--json", tmp_path / "missing")
    assert done.stdout == ""
    document = json.loads(done.stderr)
    assert document["kind"] == "UsageError"
    assert document["exit_code"] == done.returncode == 2
    assert document["hint"]


def test_a_reader_that_goes_away_is_no_noise(golden: Path) -> None:
    boot = golden / "images" / "layers-zstd" / "image.boot"
    command = " ".join([*CLI, "ls", "-R", "--json", str(boot)])
    done = subprocess.run(
        ["sh", "-c", f"{command} | head -n 1"], capture_output=True, timeout=30, check=True
    )
    assert done.stderr == b""


@root_only
def test_not_root() -> None:
    for words in (("mount", "x", "/mnt", "--blob-dir", "/"), ("stop",), ("umount", "/mnt")):
        done = run(*words, cli=CLI_AS_NOBODY)
        assert done.returncode == 7
        assert "hint: " in done.stderr


@root_only
def test_status_loads_only_what_it_needs(tmp_path: Path) -> None:
    assert run("status", "--root", tmp_path).returncode == 9
    imported = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "nydus_fscache", "status"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    ).stderr
    assert not any(name in imported for name in ("rafs_v6", "cffi", "requests", "probe"))


@root_only
def test_doctor(tmp_path: Path) -> None:
    done = run("doctor", "--root", tmp_path, "--json")
    document = json.loads(done.stdout)
    assert done.returncode == (0 if document["auto"] else 5)
    shown = run("doctor", "--root", tmp_path).stdout
    assert ("auto takes" if document["auto"] else "no transport works") in shown
    assert list(tmp_path.iterdir()) == []


@root_only
@pytest.mark.parametrize("cli", [CLI_AS_NOBODY, IN_USER_NAMESPACE])
def test_doctor_without_privileges(cli: list[str]) -> None:
    done = run("doctor", cli=cli)
    assert done.returncode == 5
    assert "NO privileges" in done.stdout
    assert "sudo" in done.stdout


def test_names_of_an_image_cannot_steer_the_terminal() -> None:
    assert printable(b"\x1b[2J\n") == "\\x1b[2J\\n"
    assert printable("\u00e4\u202e".encode()) == "\u00e4\\u202e"
    assert printable(b"\xff\\") == "\\xff\\\\"


def test_sizes_and_tables() -> None:
    assert [size(0), size(1536), size(3 << 40)] == ["0 B", "1.5 KiB", "3.0 TiB"]
    assert table(["A", "B"], [["long", "x"]]) == "A     B\nlong  x"


# what a command may import before it has its answer: modules of ours, and in all
MODULES = {"status": (14, 76), "umount": (13, 75), "stop": (13, 75), "mount": (20, 78)}
# Without what sites import before any program (``-S``): that differs from one to the next.
COUNT = f"""
import sys
before = set(sys.modules)
sys.path[:0] = {[p for p in sys.path if p]}
from nydus_fscache.api.client import Client
from nydus_fscache.cli.fscache.main import main
Client.call_first = lambda *words: {{"mountpoint": "", "transport": ""}}  # no daemon is started
Client.runs = lambda self: True
try:
    main(sys.argv[1:])
finally:
    new = set(sys.modules) - before
    print(len([m for m in new if m.startswith("nydus_fscache")]), len(new), *sorted(new))
"""


@root_only
@pytest.mark.parametrize("name", list(MODULES))
def test_a_command_imports_little(name: str, tmp_path: Path) -> None:
    """Most of the time of a short command is imports."""
    boot = tmp_path / "image.boot"
    boot.write_bytes(bytes(1024) + b"\xe2\xe1\xf5\xe0" + bytes(7164))
    words = {
        "umount": [tmp_path],
        "mount": [boot, tmp_path, "--blob-dir", tmp_path],
    }.get(name, [])
    argv = [sys.executable, "-S", "-c", COUNT, name, *words, "--root", tmp_path / "root"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    ours, everything, *names = done.stdout.splitlines()[-1].split()
    assert int(ours) <= MODULES[name][0], names
    assert int(everything) <= MODULES[name][1], names
    assert not {"rafs_v6", "requests", "http.client", "ssl", "urllib.request"} & set(names)
